"""Comparison of two runs: change of times a frame, with confidence intervals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from talkerviz.analysis.confidence import Sample, ratio_interval
from talkerviz.analysis.sampled_frames import in_whole_frames
from talkerviz.trace.call_tree import outermost
from talkerviz.trace.labels import call_shapes, first_and_others
from talkerviz.trace.runs import whole_runs
from talkerviz.trace.trace import TraceRecord, check_one_rank

ComparedBy = Literal["module", "class", "phase", "layer"]
BY_COMPARED: tuple[ComparedBy, ...] = get_args(ComparedBy)
WHOLE = "a whole frame"
"""Name of the row of all phases of a frame together."""

_MIN_FRAMES_TO_SKIP_FIRST = 3  # with fewer, leaving out the cold first frame would leave no interval
_NUMBERED = re.compile(r"\.\d+(?:\.|$).*")
_Key = tuple[str, str]  # phase and name


def compare(before: TraceRecord, after: TraceRecord, by: str = "module") -> pd.DataFrame:
    """Compare two runs, with a row a phase and module, class or layer of either.

    All figures are means a frame, over the frames of the phase in all complete runs; for a phase outside of frames,
    such as the talker's setup, over runs. The first frame of a phase is often slow by one-time work, so it is left out
    if there are three or more, unless the trace was recorded after a warm-up. The row of a whole frame counts only
    frames with the commonest set of phases, so not the first, which has the prefill.

    The interval is that of `ratio_interval`. It covers the variation between frames of the two recordings, not between
    processes or machines. Among many unchanged rows one in twenty is `significant` by chance.

    Args:
        before: the first trace.
        after: the second trace; preset, implementation and length may differ.
        by: grouping of the rows: `module`; `class`, where `Qwen3OmniMoeTalkerModel` equals `TalkerModel`; `layer`, all
            layers of a list together, `talker.model.layers.#`; or `phase`, with a first row for whole frames.

    Returns:
        Columns: `phase`; `module` and `class`, or `class` or `layer`; `status`: `new`, `vanished`, `changed` (in class,
        calls or shapes) or `same`; `frames_before` and `frames_after`, number of frames counted. Then a frame's
        `calls_before`, `calls_after`, `self_before_ns`, `self_after_ns`, `total_before_ns`, `total_after_ns`; `change`
        of the self time, 0.1 for 10 % more; `low` and `high`, the ends of its 95 % interval, `<NA>` with fewer than two
        frames in either; `significant`, true if the interval excludes 0; `shapes_before` and `shapes_after`, shapes
        that only one run has. Rows are sorted by the change in nanoseconds, largest first; phases are in the order of
        the run. `attrs["clock"]` is `device` if both traces have device times, else `host`.

    Raises:
        ValueError: an unknown `by`, a trace without times, or a trace of several ranks.
    """
    if by not in BY_COMPARED:
        raise ValueError(f"cannot compare by {by!r}: choose from {', '.join(BY_COMPARED)}")
    for trace in (before, after):
        check_one_rank(trace)
    clock = _clock(before, after)
    frames = _frames_of_both(before, after)
    names = _class_names(before, after) if by == "class" else ({}, {})
    ones, twos = (_rows_of(trace, by, clock, frames, own) for trace, own in zip((before, after), names, strict=True))
    keys = list(dict.fromkeys([*ones, *twos]))
    rows = [
        {"phase": phase, "module": name, "layer": name} | _compared(ones.get((phase, name)), twos.get((phase, name)))
        for phase, name in keys
    ]
    named = {"module": ["module", "class"], "class": ["class"], "layer": ["layer"], "phase": []}[by]
    if by == "class":
        rows = [row | {"class": name} for row, (_, name) in zip(rows, keys, strict=True)]
    table: pd.DataFrame = pd.DataFrame(rows, columns=["phase", *named, *_FIGURES]).astype(_FIGURES)
    if by != "phase":
        moved = (table["self_after_ns"].fillna(0) - table["self_before_ns"].fillna(0)).abs()
        table = table.iloc[np.argsort(-moved.to_numpy(dtype=float), kind="stable")].reset_index(drop=True)
    table.attrs["clock"] = clock
    return table


def slower(phases: pd.DataFrame, limit: float) -> pd.DataFrame:
    """Select the rows of `compare(..., "phase")` whose whole interval is above a limit, largest change first.

    Args:
        phases: the table of `compare`.
        limit: least change that counts as slower, 0.05 for 5 %.

    Raises:
        ValueError: no row has an interval.
    """
    if phases["low"].isna().all():
        raise ValueError(
            "no phase has two frames in both traces, so nothing is certain: record more with --frames or --repeat"
        )
    beyond = phases[(phases["low"] > limit).fillna(False).to_numpy(dtype=bool)]
    ordered: pd.DataFrame = beyond.sort_values("change", ascending=False)
    return ordered


@dataclass(frozen=True)
class _Row:
    """Figures of a row in one trace.

    Attributes:
        class_name: class of the module.
        own: self time a frame, in nanoseconds.
        total: mean time a frame, in nanoseconds.
        calls: mean number of calls a frame.
        shapes: distinct shapes, the commonest first.
    """

    class_name: str
    own: Sample
    total: float
    calls: float
    shapes: tuple[str, ...]


_FIGURES = {
    "status": "object",
    **dict.fromkeys(("frames_before", "frames_after"), "int64"),
    **dict.fromkeys(("calls_before", "calls_after"), "float64"),
    **dict.fromkeys(("self_before_ns", "self_after_ns", "total_before_ns", "total_after_ns"), "Float64"),
    **dict.fromkeys(("change", "low", "high"), "Float64"),
    "significant": "bool",
    **dict.fromkeys(("shapes_before", "shapes_after"), "object"),
}


def _compared(one: _Row | None, two: _Row | None) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(_FIGURES, pd.NA)
    for side, known in (("before", one), ("after", two)):
        row |= {f"frames_{side}": 0, f"calls_{side}": 0.0, f"shapes_{side}": ""}
        if known is not None:
            row |= {
                f"frames_{side}": known.own.size,
                f"calls_{side}": known.calls,
                f"self_{side}_ns": known.own.mean,
                f"total_{side}_ns": known.total,
                "class": known.class_name,
            }
    row["significant"] = False
    if one is None or two is None:
        return row | {"status": "new" if one is None else "vanished"}
    if one.own.mean > 0:
        row["change"] = two.own.mean / one.own.mean - 1
    if ends := ratio_interval(one.own, two.own):
        low, high = (end - 1 for end in ends)
        row |= {"low": low, "high": high, "significant": low > 0 or high < 0}
    for side, mine, theirs in (("before", one, two), ("after", two, one)):
        row[f"shapes_{side}"] = first_and_others([text for text in mine.shapes if text not in theirs.shapes])
    same_class = _alike(one.class_name, two.class_name)
    if not same_class:
        row["class"] = f"{one.class_name} ⇒ {two.class_name}"
    same = same_class and np.isclose(one.calls, two.calls) and set(one.shapes) == set(two.shapes)
    return row | {"status": "same" if same else "changed"}


def _clock(before: TraceRecord, after: TraceRecord) -> str:
    """Return the clock whose times both traces have."""
    if all(trace.calls["device_ns"].notna().any() for trace in (before, after)):
        return "device"
    for which, trace in (("first", before), ("second", after)):
        if not len(trace.calls) or trace.calls["host_ns"].isna().any():
            raise ValueError(f"the {which} trace has no times: record it with --clock cpu or cuda")
    return "host"


def _frames_of_both(before: TraceRecord, after: TraceRecord) -> int:
    """Return the last frame that both traces have; later frames have other cache shapes."""
    return min(int(trace.calls["frame"].fillna(-1).max()) for trace in (before, after))


def _rows_of(
    trace: TraceRecord, by: str, clock: str, last_frame: int, class_names: Mapping[str, str]
) -> dict[_Key, _Row]:
    runs = whole_runs(trace)
    timed = trace.calls["run"].isin(runs)
    if clock == "device":
        timed &= in_whole_frames(trace)
    calls = trace.calls[timed].reset_index(drop=True)
    frame = calls["frame"].to_numpy(dtype=np.int64, na_value=-1)
    # In the order of the run: calls are in it, so frames are numbered as they come.
    place = pd.factorize(calls["run"].to_numpy(np.int64) * (int(frame.max(initial=0)) + 2) + frame + 1)[0]
    phase = pd.Categorical(
        calls["phase"].astype(object).fillna(""), categories=_texts([*calls["phase"].cat.categories, "", WHOLE])
    )
    name = _names(calls, by, class_names)
    kinds = phase.codes.astype(np.int64) * (len(name.categories) + 1) + name.codes
    table = pd.DataFrame(
        {
            "phase": phase,
            "name": name,
            "place": place,
            "own": calls[f"{clock}_self_ns"].to_numpy(dtype=float, na_value=0.0),
            # What only was captured into a CUDA graph took no time on the device.
            "total": calls[f"{clock}_ns"].to_numpy(dtype=float, na_value=0.0),
            "outer": outermost(calls, kinds),
            "class": calls["class"],
            "shapes": pd.Categorical(call_shapes(calls) if by != "phase" else [""] * len(calls)),
            "seen": ((calls["run"] == runs[0]) & (frame <= last_frame)).to_numpy() if runs else True,
        }
    )
    if by == "phase":
        table = pd.concat([_whole_frames(table, frame, outermost(calls, np.zeros(len(calls)))), table])
    counted = _counted(table, warm="warmup_ns" in trace.facts)
    sizes = counted.groupby("phase", observed=True).size()
    # Rows of which all calls were left out have no time, but they are there.
    rows: dict[_Key, _Row] = {}
    inside = table.merge(counted, on=["phase", "place"])
    sums = inside.groupby(["phase", "name", "place"], sort=False, observed=True).agg(
        own=("own", "sum"), calls=("own", "size")
    )
    own = sums["own"].groupby(["phase", "name"], sort=False, observed=True).agg(list)
    number = sums["calls"].groupby(["phase", "name"], sort=False, observed=True).sum()
    total = inside[inside["outer"]].groupby(["phase", "name"], sort=False, observed=True)["total"].sum()
    for (in_phase, row), part in table.groupby(["phase", "name"], sort=False, observed=True):
        key, size = (str(in_phase), str(row)), int(sizes[in_phase])
        values = np.zeros(size)
        there = own.get(key, [])
        values[: len(there)] = there  # frames without a call count as 0
        seen = part["shapes"].cat.codes.to_numpy()[part["seen"].to_numpy()]
        shapes = Counter(dict(_commonest(seen, part["shapes"].cat.categories)))
        rows[key] = _Row(
            class_name=str(part["class"].iloc[0]),
            own=Sample(size, float(values.mean()), float(values.std(ddof=1)) if size > 1 else 0.0),
            total=float(total.get(key, 0.0)) / size,
            calls=float(number.get(key, 0)) / size,
            shapes=tuple(text for text, _ in shapes.most_common() if text),
        )
    return rows


def _whole_frames(table: pd.DataFrame, frame: np.ndarray, top: np.ndarray) -> pd.DataFrame:
    """Select the calls of frames with the commonest set of phases, as one phase; none if that is a single phase."""
    in_frames = table[frame >= 0]
    phases = {place: frozenset(column) for place, column in in_frames.groupby("place")["phase"]}
    usual = Counter(phases.values()).most_common(1)[0][0] if phases else frozenset()
    places = [place for place, frame_phases in phases.items() if frame_phases == usual and len(usual) > 1]
    of_all = pd.Categorical([WHOLE] * len(table), categories=table["phase"].cat.categories)
    whole: pd.DataFrame = table.assign(phase=of_all, outer=top)[table["place"].isin(places)]
    return whole


def _counted(table: pd.DataFrame, warm: bool) -> pd.DataFrame:
    """Return the frames that each phase's figures are means of."""
    frames = table[["phase", "place"]].drop_duplicates().sort_values("place", kind="stable")
    groups = frames.groupby("phase", sort=False, observed=True)["place"]
    cold = (groups.cumcount() == 0) & (groups.transform("size") >= _MIN_FRAMES_TO_SKIP_FIRST)
    counted: pd.DataFrame = frames if warm else frames[~cold]
    return counted


def _commonest(codes: np.ndarray, texts: pd.Index) -> list[tuple[str, int]]:
    """Count each text, in the order of first occurrence."""
    number, first, count = np.unique(codes, return_index=True, return_counts=True)
    return [(str(texts[number[row]]), int(count[row])) for row in np.argsort(first)]


def _texts(names: Sequence[object]) -> list[str]:
    return list(dict.fromkeys(map(str, names)))


def _names(calls: pd.DataFrame, by: str, class_names: Mapping[str, str]) -> pd.Categorical:
    column = calls["class" if by == "class" else "path"]
    names = {
        name: {
            "module": name,
            "class": class_names.get(name, name),
            "layer": _NUMBERED.sub(".#", name),
            "phase": "",
        }[by]
        for name in map(str, column.cat.categories)
    }
    of_category = [names[str(category)] for category in column.cat.categories]
    different = _texts(of_category)
    code_of = {text: number for number, text in enumerate(different)}
    codes = np.array([code_of[text] for text in of_category], dtype=np.int64)[column.cat.codes.to_numpy()]
    return pd.Categorical.from_codes(codes, pd.Index(different))


def _class_names(before: TraceRecord, after: TraceRecord) -> tuple[dict[str, str], dict[str, str]]:
    """Map classes that differ between the traces only in a prefix to the shorter name."""
    ones, twos = ({str(name) for name in trace.calls["class"].unique()} for trace in (before, after))
    names: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for two in sorted(twos - ones):
        similar = [one for one in ones - twos if _alike(one, two)]
        if similar:
            one = min(similar, key=lambda name: (abs(len(name) - len(two)), name))
            names[0][one] = names[1][two] = min(one, two, key=len)
    return names


def _alike(one: str, two: str) -> bool:
    """Return whether two class names differ only in a prefix, as transformers' do from ours."""
    return one.endswith(two) or two.endswith(one)
