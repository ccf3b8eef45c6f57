"""Peak arithmetic and memory rates of devices, for the roofline."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from talkerviz.atomic_file import write_text


@dataclass(frozen=True)
class Peaks:
    """Peak rates of a device.

    Attributes:
        device: name of the device.
        flops: dtype name, or `tf32` -> dense operations a second, in FLOP/s.
        bandwidth: memory bandwidth, in bytes a second.
        source: origin of the figures, such as a data sheet.
    """

    device: str
    flops: dict[str, float]
    bandwidth: float
    source: str


def _data_sheet(device: str, half: float, single: float, tf32: float | None, gigabytes: float, source: str) -> Peaks:
    """Convert a data sheet's dense TFLOP/s and GB/s."""
    flops = {"float16": half * 1e12, "bfloat16": half * 1e12, "float32": single * 1e12}
    if tf32 is not None:
        flops["tf32"] = tf32 * 1e12
    return Peaks(device, flops, gigabytes * 1e9, source)


# By the beginning of torch.cuda.get_device_name; the first match wins. Figures for sparse arithmetic are halved.
TABLE = (
    _data_sheet("NVIDIA H200", 989.5, 67, 494.5, 4800, "NVIDIA H200 data sheet (SXM)"),
    _data_sheet("NVIDIA H100 PCIe", 756, 51, 378, 2000, "NVIDIA H100 data sheet (PCIe)"),
    _data_sheet("NVIDIA H100", 989.5, 67, 494.5, 3350, "NVIDIA H100 data sheet (SXM)"),
    _data_sheet("NVIDIA A100-SXM4-80GB", 312, 19.5, 156, 2039, "NVIDIA A100 data sheet (80GB SXM)"),
    _data_sheet("NVIDIA A100 80GB PCIe", 312, 19.5, 156, 1935, "NVIDIA A100 data sheet (80GB PCIe)"),
    _data_sheet("NVIDIA A100", 312, 19.5, 156, 1555, "NVIDIA A100 data sheet (40GB)"),
    _data_sheet("NVIDIA L40S", 362, 91.6, 183, 864, "NVIDIA L40S data sheet"),
    _data_sheet("NVIDIA L4", 121, 30.3, 60, 300, "NVIDIA L4 data sheet"),
    _data_sheet("NVIDIA A10", 125, 31.2, 62.5, 600, "NVIDIA A10 data sheet"),
    _data_sheet("AMD Instinct MI300X", 1307.4, 163.4, 653.7, 5300, "AMD Instinct MI300X data sheet"),
)


def published_peaks(device_name: str) -> Peaks | None:
    """Look up a GPU's data sheet peaks by torch's device name; None for an unknown GPU."""
    matches = (peaks for peaks in TABLE if device_name == peaks.device or device_name.startswith(f"{peaks.device} "))
    return next(matches, None)


def save_peaks(peaks: Peaks, path: Path) -> None:
    """Write peaks as JSON."""
    write_text(path, json.dumps(asdict(peaks), indent=2) + "\n")


def load_peaks(path: Path) -> Peaks:
    """Read a file of `save_peaks`.

    Raises:
        ValueError: the file holds no peaks, or impossible ones.
        OSError: the file cannot be read.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        flops = {str(name): float(value) for name, value in content["flops"].items()}
        peaks = Peaks(str(content["device"]), flops, float(content["bandwidth"]), str(content["source"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: holds no peaks; make them with `talkerviz doctor --measure -o {path}`") from error
    if not all(0 < limit < math.inf for limit in (peaks.bandwidth, *peaks.flops.values())):
        raise ValueError(f"{path}: peaks must be above 0, and finite")
    return peaks


def run_peaks(peaks: Peaks, dtype: str, tf32: bool) -> dict[str, Any]:
    """Return the trace fact `peaks`: the two rates that bound a run's matrix products.

    Args:
        peaks: the device's peaks.
        dtype: the run's dtype, by torch's name.
        tf32: whether float32 products use TF32.

    Returns:
        `device`, `flops`, `bandwidth` and `source`; empty for a dtype without a peak.
    """
    rate = peaks.flops.get("tf32") if tf32 and dtype == "float32" else None
    rate = rate or peaks.flops.get(dtype)
    if rate is None:
        return {}
    return {"device": peaks.device, "flops": rate, "bandwidth": peaks.bandwidth, "source": peaks.source}
