"""What devices can do at most: arithmetic and memory traffic a second."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from talkerviz.atomic_file import write_text


@dataclass(frozen=True)
class Peaks:
    """A device's limits.

    Attributes:
        device: its name.
        flops: operations a second in a dtype, dense: torch's dtype name, or `tf32` -> FLOP/s.
        bandwidth: bytes a second to and from its memory.
        source: where the figures are from.
    """

    device: str
    flops: dict[str, float]
    bandwidth: float
    source: str


def _sheet(device: str, half: float, single: float, tf32: float | None, gigabytes: float, source: str) -> Peaks:
    """From a data sheet's dense TFLOP/s and GB/s."""
    flops = {"float16": half * 1e12, "bfloat16": half * 1e12, "float32": single * 1e12}
    if tf32 is not None:
        flops["tf32"] = tf32 * 1e12
    return Peaks(device, flops, gigabytes * 1e9, source)


# By what torch.cuda.get_device_name begins with; the first that fits. Figures with sparsity are halved.
TABLE = (
    _sheet("NVIDIA H200", 989.5, 67, 494.5, 4800, "NVIDIA H200 data sheet (SXM)"),
    _sheet("NVIDIA H100 PCIe", 756, 51, 378, 2000, "NVIDIA H100 data sheet (PCIe)"),
    _sheet("NVIDIA H100", 989.5, 67, 494.5, 3350, "NVIDIA H100 data sheet (SXM)"),
    _sheet("NVIDIA A100-SXM4-80GB", 312, 19.5, 156, 2039, "NVIDIA A100 data sheet (80GB SXM)"),
    _sheet("NVIDIA A100 80GB PCIe", 312, 19.5, 156, 1935, "NVIDIA A100 data sheet (80GB PCIe)"),
    _sheet("NVIDIA A100", 312, 19.5, 156, 1555, "NVIDIA A100 data sheet (40GB)"),
    _sheet("NVIDIA L40S", 362, 91.6, 183, 864, "NVIDIA L40S data sheet"),
    _sheet("NVIDIA L4", 121, 30.3, 60, 300, "NVIDIA L4 data sheet"),
    _sheet("NVIDIA A10", 125, 31.2, 62.5, 600, "NVIDIA A10 data sheet"),
    _sheet("AMD Instinct MI300X", 1307.4, 163.4, 653.7, 5300, "AMD Instinct MI300X data sheet"),
)


def peaks_of(device_name: str) -> Peaks | None:
    """The limits of a GPU by torch's name for it; None for one that is not in the table."""
    fitting = (peaks for peaks in TABLE if device_name == peaks.device or device_name.startswith(f"{peaks.device} "))
    return next(fitting, None)


def save_peaks(peaks: Peaks, path: Path) -> None:
    """Write limits, such as measured ones, as JSON."""
    write_text(path, json.dumps(asdict(peaks), indent=2) + "\n")


def load_peaks(path: Path) -> Peaks:
    """Read what `save_peaks` wrote.

    Raises:
        ValueError: it is not that.
        OSError: it cannot be read.
    """
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8"))
        flops = {str(name): float(value) for name, value in said["flops"].items()}
        peaks = Peaks(str(said["device"]), flops, float(said["bandwidth"]), str(said["source"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: holds no peaks; make them with `talkerviz doctor --measure -o {path}`") from error
    if not all(0 < limit < math.inf for limit in (peaks.bandwidth, *peaks.flops.values())):
        raise ValueError(f"{path}: peaks must be above 0, and finite")
    return peaks


def limits_of_run(peaks: Peaks, dtype: str, tf32: bool) -> dict[str, Any]:
    """The two limits that hold for a run's matrix products, as a trace's facts note them; empty for another dtype."""
    rate = peaks.flops.get("tf32") if tf32 and dtype == "float32" else None
    rate = rate or peaks.flops.get(dtype)
    if rate is None:
        return {}
    return {"device": peaks.device, "flops": rate, "bandwidth": peaks.bandwidth, "source": peaks.source}
