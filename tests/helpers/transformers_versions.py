"""Skip marks for drawings that depend on the version of transformers."""

from __future__ import annotations

from importlib import metadata

import pytest
from packaging.version import Version

OLDER_TRANSFORMERS = Version(metadata.version("transformers")) < Version("5.24")
not_with_older_transformers = pytest.mark.skipif(
    OLDER_TRANSFORMERS, reason="arrows by hand, for a model as transformers 5.24 has it"
)
