"""What a reader of a trace's numbers must know, in short lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from talkerviz.render.text import time_text


def notes_on(facts: Mapping[str, Any]) -> list[str]:
    """One line for each thing that the run's facts say about how far its numbers go."""
    notes = []
    if facts.get("own_cost_ns"):
        cost = time_text(facts["own_cost_ns"])
        notes.append(
            f"Recording a call costs {cost} or more on this machine, outside its time and in its caller's self time."
        )
    for path, why in facts.get("one_call", {}).items():
        notes.append(f"{path} is {why}: what runs inside it is one call.")
    if facts.get("graph_replays_unread"):
        unread, read = facts["graph_replays_unread"], facts["graph_replays"]
        notes.append(f"{unread:,} replays of CUDA graphs began before the one before was over: {read:,} were timed.")
    if facts.get("graphs_untimed"):
        notes.append(f"Calls inside CUDA graphs have no times here: {facts['graphs_untimed']}")
    if facts.get("unmeasured"):
        notes.append(f"The device could not be read: {facts['unmeasured']}")
    if facts.get("unknown_operators"):
        names = ", ".join(f"{name} ({count:,})" for name, count in facts["unknown_operators"].items())
        notes.append(f"Operators of unknown arithmetic, whose calls have no FLOP: {names}")
    if facts.get("unfinished"):
        notes.append("The run was killed: the calls it had written away until then.")
    return notes
