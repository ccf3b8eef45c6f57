"""What several test files have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chromium import running_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, the same for all tests of a file."""
    with running_browser() as found:
        yield found
