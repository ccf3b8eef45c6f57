"""What type checkers know of the public surface: mypy reads this, nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from typing_extensions import assert_type

import talkerviz as tv
from talkerviz.notebook.explorer import Explorer
from talkerviz.trace import ModuleInfo


def record(model: nn.Module, x: torch.Tensor) -> tv.Trace:
    """Check the types of a recording with named phases."""
    with tv.recording(model, clock="cpu", file=Path("run.parquet")) as rec:
        assert_type(rec, tv.Recording[tv.Trace])
        with rec.phase("warmup"):
            model(x)
        with rec.run():
            model(x)

        @rec.phase("step")
        def step(number: int) -> str:
            return str(number)

        assert_type(step(1), str)
    assert_type(rec.trace, tv.Trace)
    several = tv.record(model, lambda: model(x), measure=("flow", "cost"), warmup=1, repeat=2)
    assert_type(several.table("class", across="phase"), pd.DataFrame)
    assert_type(tv.record(model, x), tv.Trace)
    return tv.join(rec.trace, tv.record(model, lambda: model(x), measure="flow"))


def use(trace: tv.Trace, fmt: str) -> None:
    """All that a trace has."""
    assert_type(trace.calls, pd.DataFrame)
    assert_type(trace.modules, tuple[ModuleInfo, ...])
    assert_type(trace.facts, Mapping[str, Any])
    assert_type(trace.phases, list[str])
    assert_type(trace.select(phase="decode", frame=3, module="*.mlp", depth=1, run=0), tv.Trace)
    assert_type(trace.table("frame", sort="total", top=3), pd.DataFrame)
    assert_type(trace.render("mermaid", style="flat", phase="decode", edges="calls", open="*"), str)
    assert_type(trace.render("csv", by="class", across="phase", sort="self", top=3), str)
    assert_type(trace.render("png", max_nodes=9, fold=False), bytes)
    assert_type(trace.render(fmt), str | bytes)
    assert_type(trace.render("page", rank=0), str)
    trace.render("svg", styel="flat")  # type: ignore[call-overload]
    trace.render("svg", style="round")  # type: ignore[call-overload]
    trace.show("class", sort="p95", top=3, module="*.mlp", frame=1)
    trace.tree(depth=1, sort="total", phase="decode")
    assert_type(trace.report("report"), Path)
    assert_type(tv.diff(trace, trace, "markdown", by="class"), str)
    assert_type(tv.diff(trace, trace, "png", max_nodes=9), bytes)
    tv.diff(trace, trace, top=3)
    trace.save("run.parquet")
    assert_type(tv.Trace.load("run.parquet"), tv.Trace)
    assert_type(tv.explore(trace), Explorer)
    assert_type(tv.explore(trace).calls, pd.DataFrame)
