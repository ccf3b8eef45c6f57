"""Pytest fixture `talkertrace`: baselines of calls and shapes, and checks for slowdowns."""

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
from talkerviz.analysis.structure import structure_diff
from talkerviz.api import Trace, record
from talkerviz.atomic_file import write_text
from talkerviz.recorder.instruments.registry import clock_for
from talkerviz.render.terminal.comparison import notes_on_comparison, put_together, render_changes, render_comparison

# Size of a failure message: wide enough for a comparison table, short enough for a screen.
_WIDTH_CHARS = 140
_MAX_DIFF_LINES = 20
_MAX_TABLE_ROWS = 10
_MACHINE_FACTS = ("platform", "threads", "device", "gpu")


class TalkerTrace:
    """Fixture `talkertrace`.

    Args:
        folder: folder of the test file's baselines.
        test: name of the test, and of its baseline.
        update: whether to write the baselines.
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
        """Record every call of the model's modules while `run` runs.

        Args:
            model: any module.
            run: function that runs the model.
            warmup: number of unrecorded warm-up runs.
            repeat: number of recorded runs.
            clock: clock, as in `recording`; None is `cuda` or `device` for a model on an accelerator, else `cpu`.
            name: name of the root module.
            include: patterns of module paths to record; empty for all.
            exclude: patterns of module paths not to record.
            depth: deepest level below the root to record; None for all.
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
        """Fail the test unless the trace's first run has the calls, shapes and dtypes of the baseline.

        Args:
            trace: recorded trace.
            name: name of the baseline; None is the test's name.

        Raises:
            ValueError: the baseline is damaged, or the test has already checked a baseline of this name.
        """
        __tracebackhide__ = True
        name = self._test if name is None else name
        if name in self._checked:
            raise ValueError(f"{name!r}: already checked in this test; give each trace its own name")
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
        """Fail the test if a phase or a whole frame is significantly slower than in another trace.

        The check is that of `talkerviz diff --fail-above`. Times of different machines, or of a single frame, cannot be
        compared: record both traces on one machine, with `repeat`.

        Args:
            trace: recorded trace.
            than: reference trace of the same machine, or its file.
            percent: largest slowdown allowed, 10 for 10 %.

        Raises:
            ValueError: the reference is of another machine, or the traces have too few frames.
        """
        __tracebackhide__ = True
        before = than if isinstance(than, Trace) else Trace.load(than)
        for fact in _MACHINE_FACTS:
            one, two = (of.facts.get(fact) for of in (before, trace))
            if one != two:
                raise ValueError(f"than: recorded with {fact} {one}, not {two}; compare traces of the same machine")
        phases = compare(before, trace, "phase")
        if phases["low"].isna().all():
            raise ValueError("no phase has two frames in both traces, so nothing is certain: record more with repeat")
        beyond = slower(phases, percent / 100)
        if len(beyond):
            rows = compare(before, trace, "module")
            table = put_together(phases, rows, "module", _MAX_TABLE_ROWS)
            left_out = max(0, len(rows) - _MAX_TABLE_ROWS)
            summary = f"slower by more than {percent:g} %: {', '.join(beyond['phase'])}"
            shown = _text(
                render_comparison(table, "module", _MAX_TABLE_ROWS, left_out, _WIDTH_CHARS),
                *notes_on_comparison(phases),
            )
            pytest.fail(f"{summary}\n{shown}")


def _what_changed(before: list[Call], after: list[Call], path: Path) -> str:
    """Describe differing modules and operations, then the first differing lines."""
    structure = structure_diff(trace_from_calls(before), trace_from_calls(after))
    ones, twos = ([json.dumps(call, ensure_ascii=False) for call in calls] for calls in (before, after))
    lines = [line for line in difflib.unified_diff(ones, twos, n=0, lineterm="") if line[:2] in ("-{", "+{")]
    more = [f"... {len(lines) - _MAX_DIFF_LINES:,} more lines"] if len(lines) > _MAX_DIFF_LINES else []
    head = f"the calls are not those of {path}; if they are meant to be, pytest --talkertrace-update"
    return "\n".join(
        [
            head,
            *([_text(render_changes(structure))] if structure.changes else []),
            *lines[:_MAX_DIFF_LINES],
            *more,
        ]
    )


def _text(*shown: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=_WIDTH_CHARS, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        for renderable in shown:
            console.print(renderable, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
