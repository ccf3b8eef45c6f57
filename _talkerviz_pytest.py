"""The pytest plugin: the fixture `talkertrace` and the option `--talkertrace-update`.

It is loaded in every run of pytest where talkerviz is installed. So it stands outside the package, and neither that nor
torch is imported before a test asks for the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from talkerviz.pytest_support import TalkerTrace


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("talkerviz").addoption(
        "--talkertrace-update", action="store_true", help="write the baselines of talkertrace anew"
    )


@pytest.fixture
def talkertrace(request: pytest.FixtureRequest) -> TalkerTrace:
    """Record a model, and hold the trace against a baseline; see `talkerviz.pytest_support.TalkerTrace`."""
    from talkerviz.pytest_support import TalkerTrace

    folder = request.path.parent / "talkertrace" / request.path.stem
    name = ".".join(request.node.nodeid.split("::")[1:])
    return TalkerTrace(folder, name, request.config.getoption("--talkertrace-update"))
