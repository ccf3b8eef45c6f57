"""What is said below the tables."""

from __future__ import annotations

from talkerviz.render.notes import notes_on


def test_a_line_for_each_thing_to_know() -> None:
    facts = {
        "own_cost_ns": 412,
        "one_call": {"model.0": "compiled", "model.1": "scripted"},
        "graph_replays": 8,
        "graph_replays_unread": 2,
        "graphs_untimed": "no external events",
        "unmeasured": "device lost",
        "unknown_operators": {"fft_r2c": 3, "linalg_inv_ex": 1},
        "unfinished": True,
    }
    notes = notes_on(facts)
    expected = [
        "412 ns", "model.0 is compiled", "model.1 is scripted", "2 replays of CUDA graphs", "no external events",
        "device lost", "fft_r2c (3), linalg_inv_ex (1)", "The run was killed",
    ]  # fmt: skip
    assert len(notes) == len(expected)
    for note, text in zip(notes, expected, strict=True):
        assert text in note
        assert "\n" not in note
    assert notes_on({"clock": "none", "graph_replays": 4, "graph_replays_unread": 0}) == []
