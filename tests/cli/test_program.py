"""Programs run as `python` would run them: what is imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from talkerviz.cli.program import when_imported


def test_an_import_is_told_of_after_programs_have_asked_whether_the_module_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "awaited_module.py").write_text("value = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.delitem(sys.modules, "awaited_module", raising=False)
    seen: list[int] = []
    when_imported("awaited_module", lambda: seen.append(sys.modules["awaited_module"].value))
    for _ in range(2):
        assert importlib.util.find_spec("awaited_module") is not None
    assert seen == []
    importlib.import_module("awaited_module")
    assert seen == [1]
    when_imported("awaited_module", lambda: seen.append(2))
    assert seen == [1, 2]
