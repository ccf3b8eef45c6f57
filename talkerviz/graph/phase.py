"""What a phase is called in a picture."""

from __future__ import annotations

import pandas as pd


def phase_title(phase: object) -> str:
    """The phase's own name, or a name for calls that have none."""
    return "outside any phase" if pd.isna(phase) else str(phase)  # type: ignore[call-overload]
