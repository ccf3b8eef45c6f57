"""Number of examples that Hypothesis tries."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int) -> int:
    """Return half of a number of examples in CI, which tries the same ones each time, and all of them elsewhere."""
    return number // 2 if settings.default.derandomize else number  # type: ignore[union-attr]
