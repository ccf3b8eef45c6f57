"""Facts of a run: versions, model, device and process at its start; errors, cost and memory at its end."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from time import perf_counter_ns, time_ns
from typing import Any

import torch
from torch import nn

from talkerviz.recorder.dataflow.offloaded_weights import parameter_devices
from talkerviz.recorder.instruments.device_runtime import accelerator_name
from talkerviz.recorder.instruments.memory import peak_bytes
from talkerviz.recorder.module_tree import one_call_regions, parameter_sizes
from talkerviz.version import __version__

_MIN_CALLS_FOR_COST = 100  # the first calls cost many times more, as all tensors and names are new


class RunFacts:
    """Facts of one run, JSON values by name; each change makes a new mapping, so readers need no lock.

    Args:
        facts: facts known at the start.
        timed: whether the run takes times.
    """

    def __init__(self, facts: Mapping[str, Any], timed: bool) -> None:
        self.values = dict(facts)
        self._timed = timed

    def add(self, **facts: Any) -> None:
        """Add facts, in the place of those of the same name."""
        self.values = {**self.values, **facts}

    def add_process_start(self, origin_ns: int) -> None:
        """Add the start of the run to `process`, if there is one: times of several processes are merged by it.

        Args:
            origin_ns: start of the run by this process's own clock; `unix_ns` is the same by the wall clock.
        """
        if "process" in self.values:
            start = {"origin_ns": origin_ns, "unix_ns": time_ns() - (perf_counter_ns() - origin_ns)}
            self.add(process={**self.values["process"], **start})

    def add_process_hooked(self, ns: int) -> None:
        """Add to `process` how long after the start calls began to be recorded: others may have waited meanwhile."""
        if "process" in self.values:
            self.add(process={**self.values["process"], "hooked_ns": ns})

    def add_run_end(self, frame: int | None, ns: int) -> None:
        """Add the end of one of several runs to `run_ends`."""
        self._append("run_ends", {"frame": frame, "ns": ns})

    def add_failed_run(self, run: int) -> None:
        """Add a run that an exception ended to `cut_short`, and no time to `run_ends`."""
        self._append("cut_short", run)
        self._append("run_ends", None)

    def _append(self, name: str, value: Any) -> None:
        if name != "run_ends" or self._timed:
            self.add(**{name: [*self.values.get(name, ()), value]})

    def add_cost(self, calls: int, own_ns: int | None) -> None:
        """Add the host's peak memory and the recorder's own time a call, if times are taken.

        Args:
            calls: number of recorded calls.
            own_ns: time that the recorder took in all of them; None if unknown.
        """
        if self._timed and (peak := peak_bytes()) is not None:
            self.add(host_peak_bytes=peak)
        if self._timed and own_ns is not None and calls >= _MIN_CALLS_FOR_COST:
            self.add(own_cost_ns=max(1, round(own_ns / calls)))


def facts_at_start(roots: Mapping[str, nn.Module], name: str, clock: str) -> dict[str, Any]:
    """Return facts of the machine and the models.

    Args:
        roots: the models by path.
        name: path of the first.
        clock: the clock of the recording.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "talkerviz": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "clock": clock,
        **model_facts(roots, name),
    }


def model_facts(roots: Mapping[str, nn.Module], name: str) -> dict[str, Any]:
    """Return facts of the models.

    Args:
        roots: the models by path.
        name: path of the first.
    """
    every = {id(parameter): parameter for model in roots.values() for parameter in model.parameters()}
    parameters, weights_bytes = parameter_sizes(roots.values())
    facts: dict[str, Any] = {
        "root": name,
        "model": ", ".join(type(model).__name__ for model in roots.values()),
        "parameters": parameters,
        "weights_bytes": weights_bytes,
    }
    if regions := one_call_regions(roots):
        facts["one_call"] = regions
    first = next(iter(every.values()), None)
    if first is not None:
        device = next(device for model in roots.values() for device in parameter_devices(model))
        facts["device"] = str(device)
        facts["dtype"] = str(first.dtype).removeprefix("torch.")
        if device.type not in ("cpu", "meta") and (gpu := accelerator_name(device)) is not None:
            facts["gpu"] = gpu
    return facts
