"""Diagnosis of the machine: versions, GPUs, accelerations and renderers that are available."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from talkerviz.recorder.instruments.device_peaks import published_peaks
from talkerviz.recorder.instruments.device_runtime import accelerator_name
from talkerviz.recorder.tap import HOOKS_COST, Tap, why_not
from talkerviz.render.text import amount_text
from talkerviz.talker.generation.compile import check_compiler
from talkerviz.talker.kernels import check_kernels
from talkerviz.talker.model.config import preset
from talkerviz.version import __version__


def diagnose() -> list[tuple[str, str]]:
    """Return pairs of a checked item and its result."""
    results = [
        ("talkerviz", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("transformers", _version("transformers")),
        ("recorder", _recorder()),
    ]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        results.append(("GPU", "none visible to torch"))
    for number in range(torch.accelerator.device_count() if accelerator is not None else 0):
        assert accelerator is not None
        name = accelerator_name(torch.device(accelerator.type, number)) or f"{accelerator.type}:{number}"
        peaks = published_peaks(name)
        limits = "no published peaks; measure them with doctor --measure"
        if peaks:
            rate, bandwidth = amount_text(peaks.flops["bfloat16"]), amount_text(peaks.bandwidth)
            limits = f"{rate}FLOP/s in bfloat16, {bandwidth}B/s ({peaks.source})"
        memory = ""
        with suppress(AttributeError, RuntimeError):  # not every backend tells
            memory = f"{amount_text(torch.get_device_module().get_device_properties(number).total_memory)}B, "
        results.append((f"GPU {number}", f"{name}, {memory}{limits}"))
    results.append(("faster with", ", ".join(_accelerations()) or "nothing"))
    dot = shutil.which("dot")
    results.append(
        ("pictures", f"{dot}" if dot else "no `dot`: SVG and PNG by graphviz-pure, PDF needs Graphviz installed")
    )
    return results


def _accelerations() -> Iterator[str]:
    """Yield the talker's acceleration options that work on this machine."""
    with suppress(ValueError):
        check_compiler()
        yield "--compile"
    if torch.cuda.is_available():
        yield "--graphs"
        with suppress(ValueError):
            check_kernels(torch.device("cuda"), preset("full"))
            yield "--fused"


def _recorder() -> str:
    return f"forward hooks, {HOOKS_COST}: the tap is not built ({why_not})" if Tap is None else "compiled tap"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
