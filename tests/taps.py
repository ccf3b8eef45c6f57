"""The two taps, for tests that hold for either."""

from __future__ import annotations

import pytest

from talkerviz.recorder import tap

both_taps = pytest.mark.parametrize(
    "any_tap",
    [
        pytest.param("c", marks=pytest.mark.skipif(tap.Tap is tap.PythonTap, reason="no C compiler built _tap.c")),
        "python",
    ],
    indirect=True,
)
