"""The fused layers' kernels, compiled for a Hopper GPU: what can be known of them without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repo_paths import HELPERS

pytest.importorskip("triton", reason="no Triton")


# `python tests/helpers/kernels_child.py tiny float32` compiles the small ones.
@pytest.mark.parametrize(("preset", "dtype"), [("full", "bfloat16")])
def test_they_compile(preset: str, dtype: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    child = HELPERS / "kernels_child.py"
    done = subprocess.run([sys.executable, child, preset, dtype], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    names = {name.partition(",")[0] for name in kernels}
    assert len(names) == 13
    for name, kernel in kernels.items():
        if not name.startswith("angles"):  # large ones are brought down by way of memory
            assert kernel["stack"] == 0, name  # no register went there
        if not name.startswith(("angles", "attend", "choose_experts")):  # few programs, of few warps
            assert kernel["registers"] <= 128, name  # two programs of eight warps fit
        assert kernel["waits"], name
        # What the kernel before it computes is asked for when that is done.
        least = {"project_added": 2, "project_mixed": 3, "project_experts": 5, "gate_experts": 4, "attend": 10}
        assert kernel["late"] >= least.get(name.partition(",")[0], 1), (name, kernel)
        if name.startswith(("choose_experts", "find_greatest", "embed")):
            assert kernel["early"] == 0, name
        if preset == "full" and name.startswith(("project", "gate,", "route")):
            # Weights are asked for before it waits for what they are multiplied with, 16 bytes a thread.
            assert kernel["early"] >= 4, name
