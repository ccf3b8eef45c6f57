"""Bad invocations end in one line, and odd shells in none at all; `bad_invocations.py` has more of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_invocations import bad_invocations, in_a_shell, make_files, run, run_in_shell

SAMPLED = bad_invocations()[::6]
SHELLS = [
    "(sleep 0.2; tv show t.parquet; echo $? >&3) 3>&2 | true",
    "(sleep 0.2; tv --help; echo $? >&3) 3>&2 | true",
    "tv render t.parquet -f dot -o x.dot >&- 2>&- <&- && test -s x.dot",
    "tv show t.parquet >/dev/full",
    "COLUMNS=0 PYTHONIOENCODING=ascii tv show t.parquet",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder, before = tmp_path_factory.mktemp("bad"), Path.cwd()
    make_files(folder)
    os.chdir(folder)
    yield
    os.chdir(before)


def slow(arguments: list[str]) -> bool:
    """Whether a model is built before the invocation is found to be bad."""
    return "--chunk-frames" in arguments or arguments[0] in ("doctor", "capture") or "/dev/full" in arguments


@pytest.mark.usefixtures("files")
def test_bad_invocations_end_in_a_line() -> None:
    others = {"query": "exit 0"}  # a damaged file of which DuckDB reads no more than it is asked
    for arguments in SAMPLED:
        if not slow(arguments):
            outcome = run(arguments)
            assert outcome.kind in ("exit 2, one line", others.get(arguments[0])), (arguments, outcome)


@pytest.mark.usefixtures("files")
@pytest.mark.skipif(os.name != "posix", reason="in bash")
@pytest.mark.parametrize("command", SHELLS)
def test_in_a_shell(command: str) -> None:
    outcome = run_in_shell(command)
    wanted = (
        ("exit 2, one line", "talkerviz: stdout: No space left on device\n") if "full" in command else ("exit 0", "")
    )
    said = outcome.stderr.removesuffix("0\n") if command.startswith("(") else outcome.stderr
    assert (outcome.kind, said) == wanted


def test_there_are_300_of_them() -> None:
    assert len(bad_invocations()) >= 300
    assert len(in_a_shell()) >= 20
