"""Notes below the tables."""

from __future__ import annotations

from typing import Any

from sample_trace import make_trace

from talkerviz.render.notes import notes_on


def test_a_line_for_each_thing_to_know() -> None:
    facts: dict[str, Any] = {
        "own_cost_ns": 412,
        "one_call": {"model.0": "compiled", "model.1": "scripted", "model.2": "compiled", "model.3": "compiled"},
        "weights_bytes": 6_650_000_000,
        "host_peak_bytes": 7_120_000_000,
        "graph_replays": 8,
        "graphs_untimed": "no external events",
        "unmeasured": "device lost",
        "unknown_operators": {"fft_r2c": 3, "linalg_inv_ex": 1, "fft_c2r": 1},
        "unknown_operators_in": {"fft_r2c": ["model.0", "model.1", "model.2"], "linalg_inv_ex": ["model.4"]},
        "unwatched_calls": 12,
        "unfinished": True,
    }
    notes = notes_on(make_trace([], **facts))
    expected = [
        "412 ns", "weights are 6.65 GB; the process held 7.12 GB", "model.0 and 2 more are compiled",
        "model.1 is scripted", "8 replays of CUDA graphs", "no external events",
        "device lost", "Calls of other threads, 12 of them",
        "3 calls of fft_r2c in model.0 and 2 more, 1 call of linalg_inv_ex in model.4, 1 call of fft_c2r",
        "The run was killed",
    ]  # fmt: skip
    assert len(notes) == len(expected)
    for note, text in zip(notes, expected, strict=True):
        assert text in note
        assert "\n" not in note
    assert notes_on(make_trace([], clock="none")) == []
