"""Changes between the modules that two runs call: added, removed, other classes, shapes, calls or operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from talkerviz.analysis.compare import last_common_frame
from talkerviz.trace.align import Side, align, is_same_class, rename_paths, without_modules
from talkerviz.trace.labels import call_shapes, first_and_others, layer_patterns
from talkerviz.trace.runs import whole_runs
from talkerviz.trace.trace import TraceRecord, check_one_rank

Kind = Literal["added", "removed", "changed"]
OUTSIDE = "outside modules"
"""Name of the row of operations that no module ran."""

_MAX_OPERATIONS = 8  # operations listed of a module, which fill two or three lines of a column
_MAX_RENAMED = 5  # renamed modules listed by name, which fill a line or two


@dataclass(frozen=True)
class ModuleChange:
    """A difference between two runs, of one module or of several in one way.

    Attributes:
        kind: `added` and `removed` modules are in one run only; of a tree of modules only the topmost is listed.
        module: name of the module, with `*` for the numbers of several layers.
        modules: names of all of them, in the order of the run.
        class_name, shapes, calls: classes, shapes and calls a frame, `before ⇒ after` where they differ; calls are
            empty where they do not.
        operations: operations that differ, `+cat −2 setitem`; empty if either run has no flow of tensors.
    """

    kind: Kind
    module: str
    modules: tuple[str, ...]
    class_name: str
    shapes: str
    calls: str
    operations: str


@dataclass(frozen=True)
class StructureDiff:
    """All differences between the modules that two runs call.

    Attributes:
        changes: the differences, in the order of the run.
        notes: wrappers that were seen through, and modules that were renamed.
    """

    changes: tuple[ModuleChange, ...]
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Number of modules of each kind, `13 changed, 1 added`."""
        count: Counter[str] = Counter()
        for change in self.changes:
            count[change.kind] += len(change.modules)
        texts = [f"{count[kind]:,} {kind}" for kind in ("changed", "added", "removed") if count[kind]]
        return ", ".join(texts) or "The same modules are called, with the same shapes."


def structure_diff(before: TraceRecord, after: TraceRecord) -> StructureDiff:
    """List the differences between the modules, calls and operations of two runs.

    Modules are paired by `align`. Of repeated runs the first complete one counts, and of frames those that both runs
    have, since caches have other shapes in later ones.

    Raises:
        ValueError: a trace has several ranks.
    """
    for trace in (before, after):
        check_one_rank(trace)
    sides = align(before, after)
    frame = last_common_frame(before, after)
    both = before.flow is not None and after.flow is not None
    ones, twos = (_facts(trace, side, frame, both) for trace, side in zip((before, after), sides, strict=True))
    patterns = layer_patterns({name: facts.class_name for name, facts in (ones | twos).items()})
    changes: dict[tuple[str, ...], list[str]] = {}
    closed = [_one_call(trace, side) for trace, side in zip((before, after), sides, strict=True)]
    for name in _merged_order(list(ones), list(twos)):
        texts = _difference(name, ones, twos, closed)
        if texts is not None:
            changes.setdefault((texts[0], patterns[name], *texts[1:]), []).append(name)
    return StructureDiff(
        tuple(
            ModuleChange(kind, pattern if len(names) > 1 else names[0], tuple(names), *texts)  # type: ignore[arg-type]
            for (kind, pattern, *texts), names in changes.items()
        ),
        _notes(sides, closed),
    )


def _one_call(trace: TraceRecord, side: Side) -> dict[str, str]:
    """Return the modules that are one call in a run, by name in the comparison, and whether compiled or fused."""
    regions = trace.facts.get("one_call", {})
    return {side.names[path]: str(kind) for path, kind in regions.items() if path in side.names}


@dataclass(frozen=True)
class _Facts:
    """Calls of a module in one run, in each phase.

    Attributes:
        class_name: its class.
        calls: phase -> calls a frame.
        shapes: phase -> distinct shapes of the calls.
        operations: phase -> number of each operation in its own calls, without those of the modules in it.
    """

    class_name: str
    calls: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    operations: dict[str, Counter[str]] = field(default_factory=dict)


def _facts(trace: TraceRecord, side: Side, last_frame: int, flow: bool) -> dict[str, _Facts]:
    runs = whole_runs(trace)
    trace = rename_paths(without_modules(trace.select(run=runs[0]) if runs else trace, side.wrappers), side.names)
    calls = trace.calls[_until(trace.calls["frame"], last_frame)]
    table = pd.DataFrame(
        {
            "name": calls["path"].astype(str),
            "phase": calls["phase"].astype(object).fillna(""),
            "class": calls["class"].astype(str),
            "shapes": call_shapes(calls),
        }
    )
    frames = calls["frame"].fillna(-1).groupby(table["phase"]).nunique()
    facts: dict[str, _Facts] = {}
    for (name, phase), part in table.groupby(["name", "phase"], sort=False):
        of_module = facts.setdefault(name, _Facts(str(part["class"].iloc[0])))
        of_module.calls[phase] = len(part) / int(frames[phase])
        of_module.shapes[phase] = tuple(part["shapes"].value_counts().index)
    if flow and trace.flow is not None:
        ops = trace.flow.ops
        ops = ops[_until(ops["frame"], last_frame) & (ops["kind"] == "op").to_numpy(dtype=bool)]
        name_of = dict(zip(trace.calls["call"].tolist(), trace.calls["path"].astype(str), strict=True))
        names = ops["call"].map(lambda call: name_of.get(call, OUTSIDE))
        phases = ops["phase"].astype(object).fillna("")
        for (name, phase, op), count in Counter(zip(names, phases, ops["name"].astype(str), strict=True)).items():
            facts.setdefault(name, _Facts("")).operations.setdefault(phase, Counter())[op] += count
    return facts


def _until(frames: pd.Series, last: int) -> np.ndarray:
    return (frames.fillna(-1) <= last).to_numpy(dtype=bool)


def _difference(
    name: str, ones: Mapping[str, _Facts], twos: Mapping[str, _Facts], closed: Sequence[Mapping[str, str]]
) -> tuple[str, ...] | None:
    """Return the kind, class, shapes, calls and operations of a change; None for no change, or inside of another.

    Args:
        name: name of the module in the comparison.
        ones: calls of each module in the first run.
        twos: calls of each module in the second run.
        closed: modules that are one call in the first and in the second run.
    """
    one, two = ones.get(name), twos.get(name)
    if one is None or two is None:
        mine, others = (twos, ones) if one is None else (ones, twos)
        hidden = closed[0 if one is None else 1]
        around = _above(name)
        if not mine[name].calls or any((at in mine and at not in others) or at in hidden for at in around):
            return None
        kind = "added" if one is None else "removed"
        return (kind, mine[name].class_name, _shapes_text([*mine[name].shapes.values()]), "", "")
    phases = [phase for phase in one.calls if phase in two.calls] or [""]
    classes = [one.class_name, two.class_name]
    same_shapes = all(set(one.shapes.get(phase, ())) == set(two.shapes.get(phase, ())) for phase in phases)
    shapes = [
        _shapes_text(
            [
                tuple(s for s in facts.shapes.get(phase, ()) if same_shapes or s not in other.shapes.get(phase, ()))
                for phase in phases
            ]
        )
        or "–"
        for facts, other in ((one, two), (two, one))
    ]
    calls = [sum(facts.calls.get(phase, 0.0) for phase in phases) for facts in (one, two)]
    operations = _operations_text(one, two, phases if one.calls else [*one.operations])
    is_closed = name in closed[0] or name in closed[1]
    if is_closed:  # torch.compile's own class, and operations that nobody sees
        operations = ""
    same_class = is_closed or is_same_class(*classes)
    if same_class and same_shapes and calls[0] == calls[1] and not operations:
        return None
    return (
        "changed",
        classes[1] if same_class else " ⇒ ".join(classes),
        shapes[1].removeprefix("–") if same_shapes else " ⇒ ".join(shapes),
        "" if calls[0] == calls[1] else f"{calls[0]:,.4g} ⇒ {calls[1]:,.4g}",
        operations,
    )


def _above(name: str) -> list[str]:
    """Return the paths of the modules around a module."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _shapes_text(of_phases: Sequence[tuple[str, ...]]) -> str:
    return first_and_others([text for text in dict.fromkeys(text for texts in of_phases for text in texts) if text])


def _operations_text(one: _Facts, two: _Facts, phases: Sequence[str]) -> str:
    """Return the operations of which one run has more, those of a frame with the same difference: `+cat −2 setitem`."""
    more: Counter[str] = Counter()
    for phase in phases:
        for facts, sign in ((two, 1), (one, -1)):
            for op, count in facts.operations.get(phase, {}).items():
                more[op] += sign * count
    ordered = sorted(more.items(), key=lambda pair: (-abs(pair[1]), pair[0]))
    texts = [f"{'+' if count > 0 else '−'}{abs(count):,} {op}" for op, count in ordered if count]
    others = len(texts) - _MAX_OPERATIONS
    return ", ".join([*texts[:_MAX_OPERATIONS], *([f"{others:,} more"] if others > 0 else [])])


def _merged_order(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Merge two orders: names that only the first has stay behind the name before them."""
    known, last = set(after), ""
    behind: dict[str, list[str]] = {}
    for name in before:
        if name in known:
            last = name
        else:
            behind.setdefault(last, []).append(name)
    return [name for at in ("", *after) for name in ([at] if at else []) + behind.get(at, [])]


def _notes(sides: tuple[Side, Side], closed: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    notes = []
    for side, one_call, other, run in zip(sides, closed, reversed(closed), ("first", "second"), strict=True):
        if alone := [f"{name} ({kind})" for name, kind in one_call.items() if name not in other]:
            names = first_and_others(alone)
            notes.append(f"One call in the {run} run, so that modules in it are not compared: {names}.")
        if side.wrappers:
            count = Counter(side.wrappers.values())
            names = ", ".join(name if number == 1 else f"{number:,} {name}" for name, number in count.items())
            notes.append(f"Wrappers in the {run} run that were seen through: {names}.")
    renamed = {name: [side.renamed[name] for side in sides] for name in sides[1].renamed}
    if renamed:
        some = [" ⇒ ".join(paths) for paths in list(renamed.values())[:_MAX_RENAMED]]
        others = f" and {len(renamed) - len(some):,} more" if len(renamed) > len(some) else ""
        notes.append(f"Renamed: {', '.join(some)}{others}.")
    return tuple(notes)
