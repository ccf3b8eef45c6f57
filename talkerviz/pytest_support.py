"""What tests say of a trace: its calls and shapes are what they were, or it is not slower than another."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
from rich.console import Console, RenderableType
from torch import nn

from talkerviz.analysis.compare import compare, slower
from talkerviz.analysis.snapshot import Call, calls_to_json, read_snapshot, snapshot_calls, trace_from_calls
from talkerviz.api import Trace, record
from talkerviz.atomic_file import write_text
from talkerviz.flowchart.diff import changes, diff_graph
from talkerviz.recorder.instruments.registry import clock_for
from talkerviz.render.terminal.comparison import notes_on_comparison, put_together, render_changes, render_comparison

_WIDTH = 140
_MOST_LINES = 20
_MOST_ROWS = 10
_MACHINE = ("platform", "threads", "device", "gpu")


class TalkerTrace:
    """The fixture `talkertrace`.

    Args:
        folder: where the test file's baselines are.
        test: the test's name in its file, which its baseline has as well.
        update: whether baselines are written anew.
    """

    def __init__(self, folder: Path, test: str, update: bool) -> None:
        self._folder, self._test, self._update = folder, test, update
        self._checked: set[str] = set()

    def __call__(
        self,
        model: nn.Module,
        run: Callable[[], object],
        *,
        warmup: int = 0,
        repeat: int = 1,
        clock: str | None = None,
        name: str = "model",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        depth: int | None = None,
    ) -> Trace:
        """Call `run` and record every call it makes of the model's modules.

        Args:
            model: any module.
            run: runs it.
            warmup: call `run` so often first, and record nothing of it.
            repeat: record so many calls of `run`.
            clock: as of `recording`; by default `cuda` for a model on CUDA, else `cpu`.
            name: as of `recording`, like the rest.
            include: only modules that fit.
            exclude: none that fit.
            depth: only so many levels below the root.
        """
        return record(
            model,
            run,
            name,
            clock=clock or clock_for(model),
            include=include,
            exclude=exclude,
            depth=depth,
            warmup=warmup,
            repeat=repeat,
        )

    def assert_unchanged(self, trace: Trace, name: str | None = None) -> None:
        """Its first run made the calls, on tensors of the shapes and dtypes, that the baseline has.

        Args:
            trace: what was recorded.
            name: the baseline's; by default the test's.

        Raises:
            ValueError: the baseline is damaged, or the test has checked one of this name before.
        """
        __tracebackhide__ = True
        name = self._test if name is None else name
        if name in self._checked:
            raise ValueError(f"{name!r} was checked before in this test: give each trace a name of its own")
        self._checked.add(name)
        path = self._folder / f"{quote(name, safe=' []()+,=@')}.json"
        calls = snapshot_calls(trace)
        if self._update:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(path, calls_to_json(calls))
        elif not path.exists():
            pytest.fail(f"{path}: no such baseline yet; write it with pytest --talkertrace-update, and commit it")
        elif (before := read_snapshot(path)) != json.loads(calls_to_json(calls))["calls"]:
            pytest.fail(_what_changed(before, calls, path))

    def assert_not_slower(self, trace: Trace, than: Trace | str | Path, *, percent: float) -> None:
        """No phase of it, nor a whole frame, is slower by more than so many percent for certain.

        It is what `talkerviz diff --fail-above` tells. Times of two machines say nothing, nor does a single frame:
        record both here, with `repeat`.

        Args:
            trace: what was recorded.
            than: another trace of the same machine, or its file.
            percent: how much slower it may be, 10 for a tenth.

        Raises:
            ValueError: the other is of another machine, or too little was recorded to tell.
        """
        __tracebackhide__ = True
        before = than if isinstance(than, Trace) else Trace.load(than)
        for fact in _MACHINE:
            one, two = (of.facts.get(fact) for of in (before, trace))
            if one != two:
                raise ValueError(f"than: recorded with {fact} {one}, and this with {two}: their times say nothing")
        phases = compare(before, trace, "phase")
        if phases["low"].isna().all():
            raise ValueError("no phase has two frames in both traces, so nothing is certain: record more with repeat")
        beyond = slower(phases, percent / 100)
        if len(beyond):
            rows = compare(before, trace, "module")
            table = put_together(phases, rows, "module", _MOST_ROWS)
            left_out = max(0, len(rows) - _MOST_ROWS)
            said = f"slower by more than {percent:g} %: {', '.join(beyond['phase'])}"
            shown = _text(
                render_comparison(table, "module", _MOST_ROWS, left_out, _WIDTH), *notes_on_comparison(phases)
            )
            pytest.fail(f"{said}\n{shown}")


def _what_changed(before: list[Call], after: list[Call], path: Path) -> str:
    """Modules and operations that differ; then the first lines that do, which also shows what a picture folds away."""
    graph = diff_graph(trace_from_calls(before), trace_from_calls(after), "calls")
    found = changes(graph)
    ones, twos = ([json.dumps(call, ensure_ascii=False) for call in calls] for calls in (before, after))
    lines = [line for line in difflib.unified_diff(ones, twos, n=0, lineterm="") if line[:2] in ("-{", "+{")]
    more = [f"... {len(lines) - _MOST_LINES:,} more lines"] if len(lines) > _MOST_LINES else []
    head = f"the calls are not those of {path}; if they are meant to be, pytest --talkertrace-update"
    return "\n".join([head, *([_text(render_changes(found))] if found else []), *lines[:_MOST_LINES], *more])


def _text(*shown: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        for one in shown:
            console.print(one, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
