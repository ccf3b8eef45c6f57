"""Program that records on the made-up accelerator of `made_up_accelerator.cpp`, and prints what it saw as JSON.

It runs in a process of its own: torch takes one accelerator, for good.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import types
from typing import Any

import torch
from torch import nn

library = ctypes.CDLL(sys.argv[1])
library.made_up_work.argtypes = [ctypes.c_int, ctypes.c_int64]
torch.utils.rename_privateuse1_backend("madeup")
module: Any = types.ModuleType("torch.madeup")
module.is_available, module.device_count = lambda: True, lambda: 2
module.get_device_name = lambda device=0: f"Made-up {device}"
torch._register_device_module("madeup", module)

import talkerviz as tv  # noqa: E402
from talkerviz.cli.model_options import device_name  # noqa: E402
from talkerviz.doctor import diagnose  # noqa: E402
from talkerviz.recorder.instruments.registry import clock_for  # noqa: E402

MS = 1_000_000


class Works(nn.Module):
    """Gives its weight's device something to do, without making it the current one, as torch's operators do."""

    def __init__(self, ms: int, device: int, *inner: nn.Module) -> None:
        super().__init__()
        self.ms, self.device = ms, device
        self.weight = nn.Parameter(torch.ones(4, device=f"madeup:{device}"))
        self.inner = nn.ModuleList(inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for inner in self.inner:
            x = inner(x)
        library.made_up_work(self.device, self.ms * MS)
        return x + 1


class Activation(nn.Module):
    """Works on the device of its input, without weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        library.made_up_work(x.device.index, 3 * MS)
        return x


def times(trace: tv.Trace) -> list[Any]:
    calls = trace.calls
    return [[path, None if ns is None else round(ns / MS, 1)] for path, ns in zip(
        calls["path"], calls["device_ns"].astype(object).where(calls["device_ns"].notna(), None), strict=True
    )]  # fmt: skip


seen: dict[str, Any] = {"auto": device_name("auto"), "doctor": dict(diagnose())["GPU 1"]}

nested = Works(1, 0, Works(5, 0), Works(9, 0))
x = torch.ones(4, device="madeup:0")
seen["clock"] = clock_for(nested)
with tv.recording(nested, clock="device-all") as rec:
    library.made_up_work(0, 60 * MS)  # so that the host runs ahead
    for _ in range(2):
        nested(x)
calls = rec.trace.calls
seen["nested"] = times(rec.trace)
seen["self"] = [round(ns / MS, 1) for ns in calls["device_self_ns"]]
top = calls[calls["depth"] == 0]
seen["ran_ahead"] = bool((top["host_ns"] < top["device_ns"]).all())
seen["second_after_first"] = bool(
    abs(top["device_start_ns"].iloc[1] - top["device_start_ns"].iloc[0] - top["device_ns"].iloc[0]) < MS
)
seen["behind_the_host"] = bool((top["device_start_ns"] >= top["host_start_ns"]).all())
seen["gpu"] = rec.trace.facts["gpu"]


class Moves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.here, self.there, self.activation = Works(4, 0), Works(40, 1), Activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.there(self.here(x).to("madeup:1")))


moves = Moves()
with tv.recording(moves, clock="device-all") as rec:
    for device in (0, 1):
        library.made_up_work(device, 60 * MS)
    moves(x)
seen["devices"], seen["several_devices"] = times(rec.trace), rec.trace.facts["several_devices"]
seen["current"] = torch.accelerator.current_device_index()

one = Works(7, 0)
with tv.recording(one, clock="device-all") as rec:
    stream = torch.Stream("madeup:0")
    library.made_up_work(0, 500 * MS)  # on the default stream, of which the other knows nothing
    torch.accelerator.set_stream(stream)
    one(x)
    torch.accelerator.set_stream(torch.Stream(stream_id=0, device_index=0, device_type=stream.device_type))
seen["stream"] = times(rec.trace)

both = nn.ModuleList([Works(1, 0), Works(2, 1)])
with tv.recording(both, clock="device-all") as rec:

    def on_thread(index: int) -> None:
        torch.accelerator.set_device_index(index)
        library.made_up_work(index, 60 * MS)
        for _ in range(20):
            both[index](torch.ones(4, device=f"madeup:{index}"))

    threads = [threading.Thread(target=on_thread, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
calls = rec.trace.calls
seen["threads"] = {
    path: [len(of), round(float(of["device_ns"].median()) / MS, 1)] for path, of in calls.groupby("path", observed=True)
}

linear = nn.Linear(256, 256).to("madeup:0")
given = torch.ones(2, 256, device="madeup:0")
trace = tv.record(linear, lambda: linear(given), measure=["memory", "busy"])
seen["memory"] = int(trace.calls["memory_peak_bytes"].iloc[0])
seen["no_busy_time"] = [trace.calls["busy_ns"].isna().all().item(), trace.facts["unmeasured"]]

library.made_up_timed_events(0)
with tv.recording(one, clock="device") as rec:
    one(x)
seen["untimed"] = [rec.trace.facts["device_untimed"], times(rec.trace)]
library.made_up_timed_events(1)
print(json.dumps(seen))
