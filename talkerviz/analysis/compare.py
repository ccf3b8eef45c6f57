"""Comparison of two runs: change of times a frame, with confidence intervals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from talkerviz.analysis.confidence import CONFIDENCE, certain_of, chance_of_equal, ratio_interval
from talkerviz.analysis.sampled_frames import in_whole_frames
from talkerviz.trace.align import align, common_classes, is_same_class, rename_paths
from talkerviz.trace.call_tree import outermost
from talkerviz.trace.labels import call_shapes, first_and_others, layer_patterns
from talkerviz.trace.runs import whole_runs
from talkerviz.trace.trace import TraceRecord, check_one_rank

ComparedBy = Literal["pattern", "module", "class", "phase", "layer"]
BY_COMPARED: tuple[ComparedBy, ...] = get_args(ComparedBy)
WHOLE = "a whole frame"
"""Name of the row of all phases of a frame together."""

PROCESS_NOISE = 0.05
"""Change up to which two processes that run the same program differ: by where memory lies, by the core's clock."""

_MIN_FRAMES_TO_SKIP_FIRST = 3  # with fewer, leaving out the cold first frame would leave no interval
_NUMBERED = re.compile(r"\.\d+(?:\.|$).*")
_Key = tuple[str, str]  # phase and name


def compare(before: TraceRecord, after: TraceRecord, by: str = "module") -> pd.DataFrame:
    """Compare two runs, with a row a phase and module, class or layer of either.

    Modules are paired by `align`. Times are those of a typical frame: the median over the frames of the phase in all
    complete runs, or over the runs for a phase outside of frames, such as the talker's setup. A module that only some
    frames call has the median over these, times their share. The first frame of a phase is often slow by one-time
    work, so it is left out if there are three or more, unless the trace was recorded after a warm-up. The row of a
    whole frame counts only frames with the commonest set of phases, so not the first, which has the prefill.

    The interval is that of `ratio_interval`. It covers the variation between frames of the two recordings, not between
    processes or machines. So all of the interval of `significant` changes is beyond `PROCESS_NOISE`, and of all of them
    in a table of modules one in twenty is expected to be by chance.

    Args:
        before: the first trace.
        after: the second trace; preset, implementation and length may differ.
        by: grouping of the rows: `pattern`, where `layers.0.mlp` and its like in other layers are one row,
            `layers.*.mlp`; `module`; `class`, where `Qwen3OmniMoeTalkerModel` equals `TalkerModel`; `layer`, all
            layers of a list together, `talker.model.layers.#`; or `phase`, with a first row for whole frames.

    Returns:
        Columns: `phase`; `module` and `class`, or `class` or `layer`; `modules`, number of modules; `status`: `new`,
        `vanished`, `changed` (in class, calls or shapes), `wrapper` (only one trace has it, and the modules in it are
        paired) or `same`; `frames_before` and `frames_after`, number of frames counted. Then a frame's `calls_before`,
        `calls_after`, `self_before_ns`, `self_after_ns`, `total_before_ns`, `total_after_ns`; `change` of the self
        time, 0.1 for 10 % more; `low` and `high`, the ends of its 95 % interval, `<NA>` with fewer than two frames in
        either; `significant`, whether the change is certain; `shapes_before` and `shapes_after`, shapes that only one
        run has. Rows that are significant, or that only one trace has, come first, then the others, each sorted by the
        change in nanoseconds; phases are in the order of the run. `attrs["clock"]` is `device` if both traces have
        device times, else `host`.

    Raises:
        ValueError: an unknown `by`, a trace without times, or a trace of several ranks.
    """
    if by not in BY_COMPARED:
        raise ValueError(f"cannot compare by {by!r}: choose from {', '.join(BY_COMPARED)}")
    for trace in (before, after):
        check_one_rank(trace)
    clock = _clock(before, after)
    frames = last_common_frame(before, after)
    wrappers: set[str] = set()
    if by in ("pattern", "module", "layer"):
        sides = align(before, after)
        before, after = (rename_paths(trace, side.names) for trace, side in zip((before, after), sides, strict=True))
        wrappers = {side.names[path] for side in sides for path in side.wrappers}
    sides_names = _row_names(before, after, by)
    ones, twos = (
        _rows_of(trace, by, clock, frames, names) for trace, names in zip((before, after), sides_names, strict=True)
    )
    keys = list(dict.fromkeys([*ones, *twos]))
    rows = [
        {"phase": phase, "module": name, "layer": name} | _compared(ones.get((phase, name)), twos.get((phase, name)))
        for phase, name in keys
    ]
    chances = {at: row["chance"] for at, row in enumerate(rows) if "chance" in row}
    # Phases are few and all looked at; of many modules some differ by chance.
    few = [chance < 1 - CONFIDENCE for chance in chances.values()]
    for at, is_certain in zip(chances, few if by == "phase" else certain_of([*chances.values()]), strict=True):
        rows[at]["significant"] = is_certain and is_beyond_noise(rows[at])
    named = {
        "pattern": ["module", "class"],
        "module": ["module", "class"],
        "class": ["class"],
        "layer": ["layer"],
        "phase": [],
    }[by]
    rows = [row | {"status": "wrapper"} if row["module"] in wrappers else row for row in rows]
    if by == "class":
        rows = [row | {"class": name} for row, (_, name) in zip(rows, keys, strict=True)]
    table: pd.DataFrame = pd.DataFrame(rows, columns=["phase", *named, *_FIGURES]).astype(_FIGURES)
    if by != "phase":
        moved = (table["self_after_ns"].fillna(0) - table["self_before_ns"].fillna(0)).abs()
        uncertain = ~(table["significant"] | table["status"].isin(["new", "vanished"])).to_numpy(dtype=bool)
        table = table.iloc[np.lexsort((-moved.to_numpy(dtype=float), uncertain))].reset_index(drop=True)
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
    beyond = phases[((phases["low"] > limit).fillna(False) & phases["significant"]).to_numpy(dtype=bool)]
    ordered: pd.DataFrame = beyond.sort_values("change", ascending=False)
    return ordered


@dataclass(frozen=True)
class _Row:
    """Figures of a row in one trace.

    Attributes:
        class_name: class of the module.
        own: self time in each of the frames that call it, in nanoseconds.
        total: time in each of these frames, in nanoseconds.
        frames: number of frames of its phase.
        calls: mean number of calls a frame.
        shapes: distinct shapes, the commonest first.
        modules: number of modules.
    """

    class_name: str
    own: np.ndarray
    total: np.ndarray
    frames: int
    calls: float
    shapes: tuple[str, ...]
    modules: int

    @property
    def share(self) -> float:
        """Share of the frames that call it."""
        return len(self.own) / self.frames if self.frames else 0.0

    @property
    def typical_self_ns(self) -> float:
        """Self time of a typical frame."""
        return float(np.median(self.own)) * self.share if len(self.own) else 0.0

    @property
    def typical_total_ns(self) -> float:
        """Time of a typical frame."""
        return float(np.median(self.total)) * self.share if len(self.total) else 0.0


_FIGURES = {
    "modules": "int64",
    "status": "object",
    **dict.fromkeys(("frames_before", "frames_after"), "int64"),
    **dict.fromkeys(("calls_before", "calls_after"), "float64"),
    **dict.fromkeys(("self_before_ns", "self_after_ns", "total_before_ns", "total_after_ns"), "Float64"),
    **dict.fromkeys(("change", "low", "high"), "Float64"),
    "significant": "bool",
    **dict.fromkeys(("shapes_before", "shapes_after"), "object"),
}


def _compared(one: _Row | None, two: _Row | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_FIGURES, pd.NA) | {"significant": False}
    for side, known in (("before", one), ("after", two)):
        row |= {f"frames_{side}": 0, f"calls_{side}": 0.0, f"shapes_{side}": ""}
        if known is not None:
            row |= {
                f"frames_{side}": known.frames,
                f"calls_{side}": known.calls,
                f"self_{side}_ns": known.typical_self_ns,
                f"total_{side}_ns": known.typical_total_ns,
                "class": known.class_name,
            }
    row["modules"] = max(side.modules for side in (one, two) if side is not None)
    if one is None or two is None:
        return row | {"status": "new" if one is None else "vanished"}
    if one.typical_self_ns > 0:
        row["change"] = two.typical_self_ns / one.typical_self_ns - 1
    if ends := ratio_interval(one.own, two.own):
        low, high = (end * two.share / one.share - 1 for end in ends)
        row |= {"low": low, "high": high, "chance": chance_of_equal(one.own, two.own)}
    for side, mine, theirs in (("before", one, two), ("after", two, one)):
        row[f"shapes_{side}"] = first_and_others([text for text in mine.shapes if text not in theirs.shapes])
    same_class = is_same_class(one.class_name, two.class_name)
    if not same_class:
        row["class"] = f"{one.class_name} ⇒ {two.class_name}"
    same = same_class and np.isclose(one.calls, two.calls) and set(one.shapes) == set(two.shapes)
    return row | {"status": "same" if same else "changed"}


def is_beyond_noise(row: Mapping[str, Any]) -> bool:
    """Return whether all of a row's interval is a change, and not one that equal processes have too."""
    return bool(row["low"] > PROCESS_NOISE or row["high"] < -PROCESS_NOISE)


def _clock(before: TraceRecord, after: TraceRecord) -> str:
    """Return the clock whose times both traces have."""
    if all(trace.calls["device_ns"].notna().any() for trace in (before, after)):
        return "device"
    for which, trace in (("first", before), ("second", after)):
        if not len(trace.calls) or trace.calls["host_ns"].isna().any():
            raise ValueError(f"the {which} trace has no times: record it with --clock cpu or cuda")
    return "host"


def last_common_frame(before: TraceRecord, after: TraceRecord) -> int:
    """Return the last frame that both traces have; later frames have other cache shapes."""
    return min(int(trace.calls["frame"].fillna(-1).max()) for trace in (before, after))


def _rows_of(trace: TraceRecord, by: str, clock: str, last_frame: int, names: Mapping[str, str]) -> dict[_Key, _Row]:
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
    name = _names(calls["class" if by == "class" else "path"], names)
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
            "path": calls["path"].cat.codes.to_numpy(),
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
    totals = inside[inside["outer"]].groupby(["phase", "name", "place"], sort=False, observed=True)["total"].sum()
    total = totals.groupby(["phase", "name"], sort=False, observed=True).agg(list)
    for (in_phase, row), part in table.groupby(["phase", "name"], sort=False, observed=True):
        key, size = (str(in_phase), str(row)), int(sizes[in_phase])
        seen = part["shapes"].cat.codes.to_numpy()[part["seen"].to_numpy()]
        shapes = Counter(dict(_commonest(seen, part["shapes"].cat.categories)))
        rows[key] = _Row(
            class_name=str(part["class"].iloc[0]),
            own=np.array(own.get(key, []), dtype=float),
            total=np.array(total.get(key, []), dtype=float),
            frames=size,
            calls=float(number.get(key, 0)) / size,
            shapes=tuple(text for text, _ in shapes.most_common() if text),
            modules=int(part["path"].nunique()),
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


def _row_names(before: TraceRecord, after: TraceRecord, by: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Map the paths of either trace, or its classes, to the names of rows."""
    if by == "class":
        classes = common_classes(before, after)
        return tuple(
            {str(name): own.get(str(name), str(name)) for name in trace.calls["class"].cat.categories}
            for trace, own in zip((before, after), classes, strict=True)
        )  # type: ignore[return-value]
    class_of: dict[str, str] = {}
    for trace in (before, after):
        first = trace.calls.drop_duplicates("path")
        class_of |= dict(zip(first["path"].astype(str), first["class"].astype(str), strict=True))
    paths = list(class_of)
    if by == "pattern":
        patterns = layer_patterns(class_of)
        similar = Counter(patterns.values())
        names = {path: pattern if similar[pattern] > 1 else path for path, pattern in patterns.items()}
    elif by == "layer":
        names = {path: _NUMBERED.sub(".#", path) for path in paths}
    else:
        names = {path: path if by == "module" else "" for path in paths}
    return names, names


def _names(column: pd.Series, names: Mapping[str, str]) -> pd.Categorical:
    of_category = [names[str(category)] for category in column.cat.categories]
    different = _texts(of_category)
    code_of = {text: number for number, text in enumerate(different)}
    codes = np.array([code_of[text] for text in of_category], dtype=np.int64)[column.cat.codes.to_numpy()]
    return pd.Categorical.from_codes(codes, pd.Index(different))
