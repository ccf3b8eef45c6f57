"""Pytest plugin: the fixture `talkertrace` and the option `--talkertrace-update`.

Pytest loads the plugin in every run once talkerviz is installed. It is outside the package so that neither the package
nor torch is imported before a test uses the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from talkerviz.pytest_support import TalkerTrace


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--talkertrace-update`."""
    parser.getgroup("talkerviz").addoption(
        "--talkertrace-update", action="store_true", help="write the baselines of talkertrace"
    )


@pytest.fixture
def talkertrace(request: pytest.FixtureRequest) -> TalkerTrace:
    """Record a model and compare the trace with a baseline; see `talkerviz.pytest_support.TalkerTrace`."""
    from talkerviz.pytest_support import TalkerTrace

    folder = request.path.parent / "talkertrace" / request.path.stem
    name = ".".join(request.node.nodeid.split("::")[1:])
    return TalkerTrace(folder, name, request.config.getoption("--talkertrace-update"))
