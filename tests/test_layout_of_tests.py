"""Layout of the tests: folders mirror the packages, and what tests share is in tests/helpers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from repo_paths import HELPERS, ROOT

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("test_*.py"))
# It mirrors the folder of that name beside talkerviz.
BESIDE_THE_PACKAGES = {"benchmarks"}


def imported_modules(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("file", [*FILES, *sorted(HELPERS.glob("*.py"))], ids=lambda file: file.stem)
def test_no_test_is_imported(file: Path) -> None:
    tests = {other.stem for other in FILES}
    assert {name for name in imported_modules(file) if name.rpartition(".")[2] in tests} == set()


def test_every_folder_of_tests_is_a_package() -> None:
    folders = {file.parent.relative_to(TESTS).as_posix() for file in FILES} - {".", *BESIDE_THE_PACKAGES}
    assert [name for name in sorted(folders) if not (ROOT / "talkerviz" / name / "__init__.py").is_file()] == []


def test_base_names_are_unique() -> None:
    # Without `__init__.py` pytest imports a file by its base name, helpers and programs among the tests as well.
    names = [file.stem for file in TESTS.rglob("*.py") if "node_modules" not in file.parts]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []


def test_helpers_are_in_their_folder() -> None:
    """Outside it are tests, `conftest.py` and the programs that people and workflows run or read."""
    programs = {"bad_invocations", "check_wheel", "conftest", "mutations", "public_surface"}
    outside = {file.stem for file in TESTS.rglob("*.py") if file.parent != HELPERS and "node_modules" not in file.parts}
    assert {name for name in outside if not name.startswith("test_")} <= programs
