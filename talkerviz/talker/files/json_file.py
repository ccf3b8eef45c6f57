"""JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MAX_BYTES = 1 << 28  # an index of 100,000 tensors has 10 MB


def read_json(path: Path, whose: str = "") -> Any:
    """What a JSON file says; `whose` is added where there is no such file.

    Raises:
        ValueError: there is none, or it is no JSON.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ValueError(f"it has {size:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file{whose}") from None
    except RecursionError:
        raise ValueError(f"{path}: is no JSON: nested too deeply") from None
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error
