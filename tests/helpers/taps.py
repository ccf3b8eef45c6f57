"""Parametrizations over the ways to see calls: the tap, hooks, and hooks without C."""

from __future__ import annotations

import pytest

from talkerviz.recorder import tap

_not_built = pytest.mark.skipif(tap.Tap is None, reason="no C compiler built the tap")
every_way = pytest.mark.parametrize(
    "any_tap",
    # Through the tap, through hooks into the log in C, and through hooks into the one in Python.
    [pytest.param("tap", marks=_not_built), pytest.param("hooks", marks=_not_built), "python"],
    indirect=True,
)
# What hooks cannot do: see code that is compiled as a whole, scripted modules, and what is no Exception.
tap_alone = pytest.mark.parametrize("any_tap", [pytest.param("tap", marks=_not_built)], indirect=True)
