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
    if facts.get("unfinished"):
        notes.append("The run was killed: the calls it had written away until then.")
    return notes
