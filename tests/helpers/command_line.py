"""The command line in this process, with the arguments that a shell would give it."""

from __future__ import annotations

import sys

import pytest

from talkerviz.cli import main

Capture = pytest.CaptureFixture[str]


def talkerviz(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["talkerviz", *map(str, args)])
    # A program that `run` runs has these to itself, and leaves them so.
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    with pytest.raises(SystemExit) as stop:
        main()
    code = stop.value.code
    return code if isinstance(code, int) else 0
