"""Check that the installed talkerviz has its compiled tap, and that it loads: what cibuildwheel runs for each wheel."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import files

NAME = "talkerviz.recorder._tap"
names = {f"{NAME.replace('.', '/')}{suffix}" for suffix in EXTENSION_SUFFIXES}
built = [file for file in files("talkerviz") or () if file.as_posix() in names]
if not built:
    sys.exit(f"{NAME} is not in this wheel: it did not compile")
# Not by a plain import, for which the package wants torch.
spec = importlib.util.spec_from_file_location(NAME, str(built[0].locate()))
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(f"{built[0]} loads")
