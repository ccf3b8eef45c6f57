"""Frames whose calls all have device times, where the device clock left out most of the others'."""

from __future__ import annotations

import numpy as np
import pandas as pd

from talkerviz.trace import TraceRecord


def in_whole_frames(trace: TraceRecord) -> np.ndarray:
    """Return a mask of the calls that are in no frame, or in a frame whose calls all have device times.

    Calls of modules that never have one are left out of account.
    """
    calls = trace.calls
    if not {"device_sampling", "graph_replays_whole"} & {*trace.facts}:
        return np.ones(len(calls), dtype=bool)
    timed = calls["device_ns"].notna()
    lacks = ~timed & timed.groupby(calls["path"], observed=True).transform("max")
    in_cut_frame = lacks.groupby([calls["run"], calls["rank"], calls["frame"]]).transform("max")
    return ~in_cut_frame.fillna(False).to_numpy(dtype=bool)


def estimated_totals(trace: TraceRecord, codes: np.ndarray, outer: np.ndarray) -> pd.api.extensions.ExtensionArray:
    """Sum the device times of each group's outermost calls.

    The sum over calls in frames is that of the frames whose calls all have device times, times the calls in all frames
    over the calls in these. It is missing if one of these calls has no device time.

    Args:
        trace: the trace.
        codes: number of each call's group.
        outer: mask of the outermost calls.
    """
    calls = trace.calls
    framed = calls["frame"].notna().to_numpy()[outer]
    # What was captured into a CUDA graph took no time on the device.
    captured = calls["device_ns"].isna() & (calls["phase"] == "capture")
    device = calls["device_ns"].mask(captured, 0).to_numpy(dtype=float, na_value=np.nan)[outer]
    group, seen, count = codes[outer], in_whole_frames(trace)[outer], int(codes.max(initial=-1)) + 1

    def sums(mask: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(group[mask], None if weights is None else weights[mask], minlength=count)

    exact = sums(np.ones(len(group), dtype=bool), device)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(sums(framed) > 0, sums(framed) / sums(framed & seen), 1.0)
        scaled = sums(~framed, device) + np.where(sums(framed) > 0, sums(framed & seen, device) * share, 0)
    total = np.where(np.isnan(exact), scaled, exact)
    return pd.array(np.where(np.isfinite(total), np.round(total), np.nan), dtype="Int64")
