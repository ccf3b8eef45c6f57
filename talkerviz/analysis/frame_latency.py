"""Frame latency, time to first frame, jitter and real-time factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from talkerviz.trace.call_tree import outermost
from talkerviz.trace.runs import end_of_run
from talkerviz.trace.trace import TraceRecord

FRAME_NS = 80_000_000
"""Duration of the Qwen3-Omni talker's frame of speech: its codec has 12.5 frames a second."""

_CODES_PER_FRAME = 16
"""Codes of a published talker's frame: its own, and one of each of the code predictor's 15 passes. The fact
`codes_a_frame` overrides it."""

_MAX_TAIL_SHARE = 0.05
"""Largest share of the frames' time after their last calls at which a last frame may be cut off at its last call."""

_TALKER, _PREDICTOR = "talker", "code predictor"
_PARTS = {
    "prefill": _TALKER,
    "decode": _TALKER,
    "predictor.prefill": _PREDICTOR,
    "predictor.decode": _PREDICTOR,
}


@dataclass(frozen=True)
class FrameSummary:
    """Frame latency of one or several runs; unknown figures are None.

    Latencies are nanoseconds. All but `first_ns` leave out each request's first frame, which waits for the prompt.

    Attributes:
        runs: number of runs.
        frames: number of complete frames, first frames included.
        first_ns: mean time to the first frame: from a run's first call, so with setup and prefill, or from a further
            request's prefill, to the end of the first frame, or of the last chunk of the prompt.
        mean_ns: mean latency.
        p50_ns: median latency.
        p95_ns: 95th percentile of the latency.
        p99_ns: 99th percentile of the latency.
        max_ns: longest latency.
        jitter_ns: mean absolute difference between the latencies of consecutive frames.
        real_time_factor: seconds of speech generated in a second; playback needs at least 1. None for models that make
            no speech.
        codes_per_second: codes generated in a second; None for models that make no speech.
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
    """Return whether the trace is the Qwen3-Omni talker's, whose phases and frames are those of `TalkerPhases`."""
    return "scenario" in trace.facts


def speech_ns(trace: TraceRecord) -> float | None:
    """Return the nanoseconds of speech in a frame, by the fact `frame_ns`; None for models that make no speech."""
    frame_ns: float | None = trace.facts.get("frame_ns", FRAME_NS if makes_speech(trace) else None)
    return frame_ns


def _codes_per_frame(trace: TraceRecord) -> int:
    return int(trace.facts.get("codes_a_frame", _CODES_PER_FRAME))


def call_parts(trace: TraceRecord) -> pd.Series:
    """Return the part of the talker that each call belongs to: `setup`, `talker` or `code predictor`.

    For other models it is the phase; None for calls without a phase.
    """
    phases = trace.calls["phase"]
    is_talker = makes_speech(trace)
    parts = [_PARTS.get(name, name) if is_talker else name for name in phases.cat.categories]
    # A call without a phase has the code -1, the last element.
    by_call: pd.Series = pd.Series(np.array([*parts, None], dtype=object)[phases.cat.codes], index=phases.index)
    return by_call


def call_times(calls: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return each call's start and duration in nanoseconds: device times where measured, else host times.

    In a frame that has device times, calls without have no times at all: the host may be far ahead of the device.
    """
    on_device = calls["device_ns"].notna()
    frame_on_device = on_device.groupby([calls["run"], calls["frame"]]).transform("max").fillna(False).astype(bool)
    left_out = (frame_on_device & ~on_device).to_numpy()

    def either(device: str, host: str) -> np.ndarray:
        values: np.ndarray = calls[device].fillna(calls[host]).to_numpy(float, na_value=np.nan)
        return np.where(left_out, np.nan, values)

    return either("device_start_ns", "host_start_ns"), either("device_ns", "host_ns")


def frame_latencies(trace: TraceRecord) -> pd.DataFrame:
    """Compute the latency of each frame of each run.

    A frame lasts from the start of its first call, on any rank, to the start of the next frame of the same request, or
    of the same thread if there are no requests; time between two requests belongs to no frame. The talker's last frame
    lasts until the end of its last call if it has all its codes. The pass that transformers makes after the last frame
    is thus no frame and has no latency; nor has a selection of only the code predictor's calls.

    The last frame of another model lasts until the end of the run, see `end_of_run`. If that is unknown, and for a
    frame followed by calls of no frame, it lasts until the end of its last call. It has no latency if more than 5 % of
    the other frames' time is after their last calls, in sampling or an optimizer, since it would be too short. A frame
    whose calls failed has no latency.

    Device times are used where measured, since the host may be far ahead of the device.

    Args:
        trace: a trace, or a selection of `Trace.select`.

    Returns:
        A row a frame and run, in order: `run`; `frame`; `latency_ns`; and for speech `real_time_factor`, the duration
        of a frame of speech over the latency; `codes_per_second`, codes over the latency; `talker_ns` and
        `predictor_ns`, the time inside the calls of each part. Unknown values are `<NA>`.
    """
    latencies: pd.DataFrame = _frames(trace).drop(columns=["line", "prefill", "start_ns"])
    return latencies


def _frames(trace: TraceRecord) -> pd.DataFrame:
    """Compute `frame_latencies` with three more columns.

    Returns:
        `line`, the request or thread of the frame; `prefill`, whether its first call is of a prefill; `start_ns`.
    """
    calls = trace.calls
    speech, codes = makes_speech(trace), _codes_per_frame(trace)
    start, duration = call_times(calls)
    part = call_parts(trace)
    outer = outermost(calls, pd.factorize(part)[0])
    at_top = ~calls["parent"].isin(calls["call"])
    rows = pd.DataFrame(
        {
            "row": np.arange(len(calls)),
            "run": calls["run"],
            "frame": calls["frame"],
            "step": calls["step"],
            # Requests are numbered from 0, threads of calls without a request from -1 down.
            "line": calls["request"].fillna(-1 - calls["thread"]).astype("int64"),
            "prefill": calls["phase"].astype("string").str.endswith("prefill").fillna(False),
            "part": part,
            "start": start,
            "end": start + duration,
            "failed": at_top & calls["error"].notna(),
            "talker": np.where(outer & (part == _TALKER) & speech, duration, np.nan),
            "predictor": np.where(outer & (part == _PREDICTOR) & speech, duration, np.nan),
        }
    )
    groups = rows.groupby(["run", "frame"])
    frames: pd.DataFrame = groups.size().index.to_frame(index=False)
    number = frames["frame"].to_numpy(int)
    first, last = groups["start"].min().to_numpy(float), groups["end"].max().to_numpy(float)
    frames["line"], frames["prefill"] = groups["line"].first().to_numpy(), groups["prefill"].first().to_numpy()
    frames["start_ns"] = first
    by_line = frames.assign(row=np.arange(len(frames)), frame=number).groupby(["run", "line"])[["row", "frame"]]
    next_frame = by_line.shift(-1).to_numpy(float)
    # Rows between the two are other lines' frames, so no frame is missing.
    followed = next_frame[:, 0] - np.arange(len(frames)) == next_frame[:, 1] - number
    # Calls that capture a CUDA graph are between frames, and belong to none.
    next_row = (
        rows.groupby(["run", calls["thread"]])["row"].shift(-1).to_numpy(float)[groups["row"].max().to_numpy(int)]
    )
    cut = np.append(rows["frame"].isna(), False)[np.nan_to_num(next_row, nan=len(rows)).astype(int)]
    followed &= ~cut
    complete = ~groups["failed"].any().to_numpy()
    next_row_or_none = np.where(followed, np.nan_to_num(next_frame[:, 0]), len(frames)).astype(int)
    next_start = np.append(first, np.nan)[next_row_or_none]
    if speech:
        complete &= (groups["step"].max() == codes - 2).to_numpy(bool, na_value=False)
    else:
        last = _ends_of_last_frames(trace, frames.assign(last=last, next=next_start, followed=followed, cut=cut))
    end = np.where(followed, next_start, np.where(complete, last, np.nan))
    begun = (groups["part"].first() == _TALKER).to_numpy() if speech else True
    latency = np.where(begun, end - first, np.nan)
    frame_ns = speech_ns(trace)
    seconds = latency / 1e9 if frame_ns else np.full_like(latency, np.nan)
    frames["latency_ns"] = pd.array(latency, dtype="Int64")
    frames["real_time_factor"] = pd.array((frame_ns or np.nan) / 1e9 / seconds, dtype="Float64")
    frames["codes_per_second"] = pd.array(codes / seconds, dtype="Float64")
    frames["talker_ns"] = pd.array(groups["talker"].sum(min_count=1), dtype="Int64")
    frames["predictor_ns"] = pd.array(groups["predictor"].sum(min_count=1), dtype="Int64")
    return frames


def _ends_of_last_frames(trace: TraceRecord, frames: pd.DataFrame) -> np.ndarray:
    """Return the ends of frames without a following frame, for models other than the talker."""
    ends: np.ndarray = frames["last"].to_numpy(copy=True)
    for run in frames["run"].unique():
        of_run = frames[frames["run"] == run]
        others = of_run[of_run["followed"]]
        after_calls = (others["next"] - others["last"]).clip(lower=0).sum()
        if after_calls > _MAX_TAIL_SHARE * (others["next"] - others["start_ns"]).sum():
            ends[of_run.index] = np.nan
        final = of_run.index[-1]
        end = end_of_run(trace, int(run))
        if end is not None and not frames["cut"][final]:
            # The device may finish after the host.
            ends[final] = np.maximum(frames["last"][final], end)
    return ends


def frame_summary(trace: TraceRecord) -> FrameSummary | None:
    """Summarise the frame latency of a trace; None if no complete frame was timed."""
    frames = _frames(trace).dropna(subset=["latency_ns"])
    if frames.empty:
        return None
    number = frames["frame"].to_numpy(int)
    latency = frames["latency_ns"].to_numpy(float)
    # A request's frames up to the last chunk of its prompt wait for the prompt.
    waits = ((number == 0) | (frames["prefill"] & (frames["line"] >= 0))).to_numpy(bool)
    later = latency[~waits]
    before = frames.assign(waits=waits).groupby(["run", "line"])[["latency_ns", "waits"]].shift(1)
    consecutive = ~waits & ~before["waits"].fillna(True).astype(bool)
    differences = (frames["latency_ns"] - before["latency_ns"])[consecutive].abs()
    mean = float(later.mean()) if len(later) else None
    p50, p95, p99 = np.percentile(later, [50, 95, 99]).tolist() if len(later) else (None, None, None)
    to_first = _times_to_first_frame(trace, frames[waits])
    frame_ns = speech_ns(trace)
    return FrameSummary(
        runs=frames["run"].nunique(),
        frames=len(frames),
        first_ns=float(np.mean(to_first)) if to_first else None,
        mean_ns=mean,
        p50_ns=p50,
        p95_ns=p95,
        p99_ns=p99,
        max_ns=float(later.max()) if len(later) else None,
        jitter_ns=float(differences.mean()) if len(differences) else None,
        real_time_factor=frame_ns / mean if mean and frame_ns else None,
        codes_per_second=_codes_per_frame(trace) * 1e9 / mean if mean and frame_ns else None,
    )


def _times_to_first_frame(trace: TraceRecord, waits: pd.DataFrame) -> list[float]:
    """Return each request's time to its first frame; a run's first request counts from the run's first call."""
    times = []
    for _, frames in waits.groupby(["run", "line"]):
        is_first_request = 0 in frames["frame"].to_numpy()
        began = float(frames["start_ns"].iloc[0])
        if is_first_request:
            calls = trace.calls[trace.calls["run"] == frames["run"].iloc[0]]
            began = float(calls["host_start_ns"].fillna(calls["device_start_ns"]).min())
        times.append(float(frames["start_ns"].iloc[-1] + frames["latency_ns"].iloc[-1]) - began)
    return times
