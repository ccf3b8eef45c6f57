"""How fast frames come: each frame's latency, and what that is for speech."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from talkerviz.trace.call_tree import outermost
from talkerviz.trace.runs import end_of_run
from talkerviz.trace.trace import TraceRecord

FRAME_NS = 80_000_000
"""How long a frame of speech sounds: the codec has 12.5 of them a second."""

_CODES = 16
"""Codes of a published talker's frame, its own and one of each of the code predictor's passes; of another one the fact
`codes_a_frame` says how many."""

_MOST_AFTER_CALLS = 0.05
"""Of a frame's time: what is too little to matter where a frame is cut off at the end of its last call."""

_TALKER, _PREDICTOR = "talker", "code predictor"
_PARTS = {
    "prefill": _TALKER,
    "decode": _TALKER,
    "predictor.prefill": _PREDICTOR,
    "predictor.decode": _PREDICTOR,
}


@dataclass(frozen=True)
class FrameSummary:
    """How fast the frames of a run came. What there is no figure for is None.

    Latencies are nanoseconds, and all but `first_ns` are of the frames after each request's first one, which waits for
    the prompt.

    Attributes:
        runs: how many runs they are of.
        frames: how many frames are whole, the first ones included.
        first_ns: from a run's first call, so with setup and prefill, to the end of its first frame, or of the last
            piece of its prompt; a further request's from its prefill on. The mean of all.
        mean_ns: of a frame's latency, as the next four.
        p50_ns: the median.
        p95_ns: 95 in a hundred take no longer.
        p99_ns: 99 in a hundred take no longer.
        max_ns: the longest.
        jitter_ns: by how much a frame's latency differs from that of the frame before it, in the mean.
        real_time_factor: seconds of speech made in a second; speech does not break off from 1 on. None for what is no
            speech.
        codes_per_second: likewise.
    """

    runs: int
    frames: int
    first_ns: float | None
    mean_ns: float | None
    p50_ns: float | None
    p95_ns: float | None
    p99_ns: float | None
    max_ns: float | None
    jitter_ns: float | None
    real_time_factor: float | None
    codes_per_second: float | None


def makes_speech(trace: TraceRecord) -> bool:
    """Whether it is the talker's: its frames are 80 ms of speech."""
    return "scenario" in trace.facts


def _codes_of(trace: TraceRecord) -> int:
    return int(trace.facts.get("codes_a_frame", _CODES))


def call_parts(trace: TraceRecord) -> pd.Series:
    """The part of the talker that each call serves, by its phase: `setup`, `talker` or `code predictor`.

    Of another model it is the phase; where there is none, None.
    """
    phases = trace.calls["phase"]
    of_talker = makes_speech(trace)
    parts = [_PARTS.get(name, name) if of_talker else name for name in phases.cat.categories]
    # A call of no phase has the code -1: the last place.
    found: pd.Series = pd.Series(np.array([*parts, None], dtype=object)[phases.cat.codes], index=phases.index)
    return found


def call_times(calls: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """When each call began and how long it took, on the device where that was measured."""

    def either(device: str, host: str) -> np.ndarray:
        values: np.ndarray = calls[device].fillna(calls[host]).to_numpy(float, na_value=np.nan)
        return values

    return either("device_start_ns", "host_start_ns"), either("device_ns", "host_ns")


def frame_latencies(trace: TraceRecord) -> pd.DataFrame:
    """A row for each frame that has calls, in order; of several runs, for each run's.

    A frame lasts from the start of its first call, on whatever rank, to that of the next frame of the same request, or
    without requests of the same thread: the time between two requests is of no frame. The talker's last one lasts until
    its last call has ended, if all of its codes were chosen: a pass after the last frame, as transformers makes one, is
    thus no frame, and has no latency. Neither has a frame of which only the code predictor's calls were selected.

    Another model's last one lasts until the run has ended, where that is known: see `end_of_run`. Else it lasts until
    its last call has ended, as one does that calls of no frame come after; but such a frame has no latency where more
    than 5 % of the others' time passes after their last calls, in sampling or an optimizer: it would be too short.
    Where its calls failed it has none either.

    Returns:
        Columns: `run`; `frame`; `latency_ns`; `real_time_factor`, 80 ms of speech over it; `codes_per_second`, its
        codes over it; `talker_ns` and `predictor_ns`, the time inside the calls of either part. The last four are of
        speech alone.
        Where a device's times were measured, they are taken, as the host may be far ahead; else the host's. What was
        not measured is `<NA>`.
    """
    found: pd.DataFrame = _frames(trace).drop(columns=["line", "prefill", "start_ns"])
    return found


def _frames(trace: TraceRecord) -> pd.DataFrame:
    """The same, with the number of the `line` of frames that each is in, those of one request or one thread; whether
    its first call is of a `prefill`; and its `start_ns`."""
    calls = trace.calls
    speech, codes = makes_speech(trace), _codes_of(trace)
    start, length = call_times(calls)
    part = call_parts(trace)
    outer = outermost(calls, pd.factorize(part)[0])
    at_top = ~calls["parent"].isin(calls["call"])
    rows = pd.DataFrame(
        {
            "row": np.arange(len(calls)),
            "run": calls["run"],
            "frame": calls["frame"],
            "step": calls["step"],
            # Requests have numbers from 0, what is of none goes by its thread.
            "line": calls["request"].fillna(-1 - calls["thread"]).astype("int64"),
            "prefill": calls["phase"].astype("string").str.endswith("prefill").fillna(False),
            "part": part,
            "start": start,
            "end": start + length,
            "failed": at_top & calls["error"].notna(),
            "talker": np.where(outer & (part == _TALKER) & speech, length, np.nan),
            "predictor": np.where(outer & (part == _PREDICTOR) & speech, length, np.nan),
        }
    )
    groups = rows.groupby(["run", "frame"])
    found: pd.DataFrame = groups.size().index.to_frame(index=False)
    frame = found["frame"].to_numpy(int)
    first, last = groups["start"].min().to_numpy(float), groups["end"].max().to_numpy(float)
    found["line"], found["prefill"] = groups["line"].first().to_numpy(), groups["prefill"].first().to_numpy()
    found["start_ns"] = first
    next_of_line = found.assign(place=np.arange(len(found)), frame=frame).groupby(["run", "line"])[["place", "frame"]]
    behind = next_of_line.shift(-1).to_numpy(float)
    # Frames between the two are of others: none is missing.
    followed = behind[:, 0] - np.arange(len(found)) == behind[:, 1] - frame
    # What runs to capture a CUDA graph comes between frames, and is part of none.
    next_row = (
        rows.groupby(["run", calls["thread"]])["row"].shift(-1).to_numpy(float)[groups["row"].max().to_numpy(int)]
    )
    cut = np.append(rows["frame"].isna(), False)[np.nan_to_num(next_row, nan=len(rows)).astype(int)]
    followed &= ~cut
    whole = ~groups["failed"].any().to_numpy()
    following = np.append(first, np.nan)[np.where(followed, np.nan_to_num(behind[:, 0]), len(found)).astype(int)]
    if speech:
        whole &= (groups["step"].max() == codes - 2).to_numpy(bool, na_value=False)
    else:
        last = _without_next(trace, found.assign(last=last, next=following, followed=followed, cut=cut))
    end = np.where(followed, following, np.where(whole, last, np.nan))
    begun = (groups["part"].first() == _TALKER).to_numpy() if speech else True
    latency = np.where(begun, end - first, np.nan)
    seconds = np.where(speech, latency / 1e9, np.nan)
    found["latency_ns"] = pd.array(latency, dtype="Int64")
    found["real_time_factor"] = pd.array(FRAME_NS / 1e9 / seconds, dtype="Float64")
    found["codes_per_second"] = pd.array(codes / seconds, dtype="Float64")
    found["talker_ns"] = pd.array(groups["talker"].sum(min_count=1), dtype="Int64")
    found["predictor_ns"] = pd.array(groups["predictor"].sum(min_count=1), dtype="Int64")
    return found


def _without_next(trace: TraceRecord, frames: pd.DataFrame) -> np.ndarray:
    """Until when a frame lasts that none follows, of another model than the talker."""
    ends: np.ndarray = frames["last"].to_numpy(copy=True)
    for run in frames["run"].unique():
        of_run = frames[frames["run"] == run]
        others = of_run[of_run["followed"]]
        after_calls = (others["next"] - others["last"]).clip(lower=0).sum()
        if after_calls > _MOST_AFTER_CALLS * (others["next"] - others["start_ns"]).sum():
            ends[of_run.index] = np.nan
        final = of_run.index[-1]
        end = end_of_run(trace, int(run))
        if end is not None and not frames["cut"][final]:
            # A device may be behind the host.
            ends[final] = np.maximum(frames["last"][final], end)
    return ends


def frame_summary(trace: TraceRecord) -> FrameSummary | None:
    """How fast the frames of a run came, or of several; None where no whole frame was timed."""
    frames = _frames(trace).dropna(subset=["latency_ns"])
    if frames.empty:
        return None
    number = frames["frame"].to_numpy(int)
    latency = frames["latency_ns"].to_numpy(float)
    # Each request waits for its prompt, which may be put in in pieces.
    waits = ((number == 0) | (frames["prefill"] & (frames["line"] >= 0))).to_numpy(bool)
    later = latency[~waits]
    before = frames.assign(waits=waits).groupby(["run", "line"])[["latency_ns", "waits"]].shift(1)
    apart = (frames["latency_ns"] - before["latency_ns"])[~waits & ~before["waits"].fillna(True).astype(bool)].abs()
    mean = float(later.mean()) if len(later) else None
    p50, p95, p99 = np.percentile(later, [50, 95, 99]).tolist() if len(later) else (None, None, None)
    until = _until_first(trace, frames[waits])
    speech = makes_speech(trace)
    return FrameSummary(
        runs=frames["run"].nunique(),
        frames=len(frames),
        first_ns=float(np.mean(until)) if until else None,
        mean_ns=mean,
        p50_ns=p50,
        p95_ns=p95,
        p99_ns=p99,
        max_ns=float(later.max()) if len(later) else None,
        jitter_ns=float(apart.mean()) if len(apart) else None,
        real_time_factor=FRAME_NS / mean if mean and speech else None,
        codes_per_second=_codes_of(trace) * 1e9 / mean if mean and speech else None,
    )


def _until_first(trace: TraceRecord, waits: pd.DataFrame) -> list[float]:
    """How long each request waits for its first frame: a run's first one from the run's first call on."""
    found = []
    for _, frames in waits.groupby(["run", "line"]):
        begins = 0 in frames["frame"].to_numpy()
        began = float(frames["start_ns"].iloc[0])
        if begins:
            calls = trace.calls[trace.calls["run"] == frames["run"].iloc[0]]
            began = float(calls["host_start_ns"].fillna(calls["device_start_ns"]).min())
        found.append(float(frames["start_ns"].iloc[-1] + frames["latency_ns"].iloc[-1]) - began)
    return found
