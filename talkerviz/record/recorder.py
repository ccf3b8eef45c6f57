"""Record every call of a model's modules while some code runs it."""

from __future__ import annotations

import datetime
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

import pandas as pd
import torch
from torch import nn

import talkerviz
from talkerviz.record.events import ThreadLog, thread_rows
from talkerviz.record.phases import ForwardPhases, Mark, PhaseRule
from talkerviz.record.tensors import Signatures
from talkerviz.record.watch import watch
from talkerviz.trace.schema import ModuleInfo
from talkerviz.trace.trace import Trace, calls_frame

CLOCKS = ("cpu", "none")


class Recording:
    """A recording that is going on or has ended; made by `recording`.

    Attributes:
        trace: the record. There once the recording has ended, also when the code inside it raised.
    """

    trace: Trace

    def __init__(self, model: nn.Module, name: str, phases: PhaseRule, clock: str) -> None:
        self._modules, self._paths = _watched_modules(model, name)
        self._infos = tuple(
            ModuleInfo(
                path,
                type(module).__name__,
                sum(p.numel() for p in module.parameters(recurse=False)),
                sum(p.numel() * p.element_size() for p in module.parameters(recurse=False)),
                tuple(self._paths[id(module)][1:]),
            )
            for path, module in self._modules.items()
        )
        self._phases = phases
        self._latest = phases.start
        self._timed = clock == "cpu"
        self._signatures = Signatures()
        self._logs: list[ThreadLog] = []
        # Not by thread number: the system gives a number again once its thread has ended.
        self._of_thread = threading.local()
        self._origin_ns = perf_counter_ns()
        self._undo: list[Callable[[], None]] = []

    def _attach(self) -> None:
        for number, (path, module) in enumerate(self._modules.items()):
            entered, left = (self._entered, self._left) if path in self._phases.landmarks else (None, None)
            self._undo.append(
                watch(
                    module,
                    number,
                    path,
                    log_of_thread=self._log_of_thread,
                    signatures=self._signatures,
                    now=perf_counter_ns if self._timed else _no_time,
                    entered=entered,
                    left=left,
                )
            )

    def _detach(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _log_of_thread(self) -> ThreadLog:
        try:
            log: ThreadLog = self._of_thread.log
        except AttributeError:
            log = self._of_thread.log = ThreadLog(marks=[(0, self._latest)])
            self._logs.append(log)
        return log

    def _entered(self, log: ThreadLog, path: str, kwargs: Mapping[str, Any]) -> None:
        self._mark(log, self._phases.entered(path, kwargs))

    def _left(self, log: ThreadLog, path: str) -> None:
        self._mark(log, self._phases.left(path))

    def _mark(self, log: ThreadLog, mark: Mark | None) -> None:
        if mark is not None:
            self._latest = mark
            log.marks.append((len(log.events), mark))

    def _build_trace(self, facts: Mapping[str, Any]) -> Trace:
        threads = []
        calls_before = 0
        for number, log in enumerate(self._logs):
            rows = thread_rows(log, self._origin_ns, self._timed)
            nested = rows["parent"] >= 0
            rows["call"] += calls_before
            rows["parent"][nested] += calls_before
            calls_before += len(rows["call"])
            threads.append(pd.DataFrame({**rows, "thread": number}))
        calls = pd.concat(threads, ignore_index=True) if threads else _no_calls(self._timed)
        if len(threads) > 1 and self._timed:
            calls = _in_order_of_start(calls)

        lists = pd.Series([*self._signatures.lists, None], dtype=object).to_numpy()[:-1]
        paths = [info.path for info in self._infos]
        classes = [info.class_name for info in self._infos]
        modules = calls.pop("module").to_numpy(dtype=int)
        calls["path"] = pd.Categorical([paths[module] for module in modules])
        calls["class"] = pd.Categorical([classes[module] for module in modules])
        calls["inputs"] = lists[calls["inputs"].to_numpy(dtype=int)]
        calls["outputs"] = lists[calls["outputs"].to_numpy(dtype=int)]
        calls["parent"] = calls["parent"].astype("Int64").mask(calls["parent"] < 0)
        return Trace(calls_frame(calls), self._infos, facts)


@contextmanager
def recording(
    model: nn.Module,
    name: str = "model",
    phases: PhaseRule | None = None,
    clock: str = "cpu",
    facts: Mapping[str, Any] | None = None,
) -> Iterator[Recording]:
    """Record every call of the model's modules made inside the `with` block, on any thread.

    The model is left exactly as it was, whatever happens inside, and `trace` holds the calls made until then.

    Args:
        model: any module.
        name: the root's name in the trace; the path of every module begins with it.
        phases: how the run divides into phases and frames; by default each call of the root is a frame.
        clock: `cpu` for host times in nanoseconds, `none` for shapes alone.
        facts: what to note of the run, JSON values; versions, device and threads are noted anyway.

    Raises:
        ValueError: an unknown clock.
    """
    if clock not in CLOCKS:
        raise ValueError(f"unknown clock {clock!r}: choose from {', '.join(CLOCKS)}")
    rec = Recording(model, name, phases or ForwardPhases(name), clock)
    started = datetime.datetime.now(datetime.timezone.utc)
    try:
        rec._attach()
        yield rec
    finally:
        rec._detach()
        rec.trace = rec._build_trace({**_facts(model, name, clock, started), **(facts or {})})


def record(
    model: nn.Module,
    run: Callable[[], object],
    name: str = "model",
    phases: PhaseRule | None = None,
    clock: str = "cpu",
    facts: Mapping[str, Any] | None = None,
) -> Trace:
    """Call `run` and record every call it makes of the model's modules; see `recording` for the arguments."""
    with recording(model, name, phases, clock, facts) as rec:
        run()
    return rec.trace


def _watched_modules(model: nn.Module, name: str) -> tuple[dict[str, nn.Module], dict[int, list[str]]]:
    """The modules to watch by path, and every path of each module by its id.

    What runs inside a compiled or scripted region makes no Python calls, so such a module is watched as one.
    """
    modules: dict[str, nn.Module] = {}
    paths: dict[int, list[str]] = {}
    closed: list[str] = []
    for path, module in model.named_modules(prefix=name, remove_duplicate=False):
        if any(path.startswith(region) for region in closed):
            continue
        if _is_one_region(module):
            closed.append(f"{path}.")
        if id(module) not in paths:
            modules[path] = module
        paths.setdefault(id(module), []).append(path)
    return modules, paths


def _is_one_region(module: nn.Module) -> bool:
    compiled = isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
    return compiled or isinstance(module, torch.jit.ScriptModule)


def _in_order_of_start(calls: pd.DataFrame) -> pd.DataFrame:
    ordered: pd.DataFrame = calls.sort_values(["host_start_ns", "call"], ignore_index=True)
    renumbered = pd.Series(ordered.index, index=ordered["call"])
    ordered["parent"] = ordered["parent"].map(renumbered).fillna(-1).astype("int64")
    ordered["call"] = ordered.index
    return ordered


def _no_calls(timed: bool) -> pd.DataFrame:
    none: pd.DataFrame = pd.DataFrame({**thread_rows(ThreadLog(marks=[(0, Mark("forward"))]), 0, timed), "thread": 0})
    return none


def _no_time() -> int:
    return -1


def _facts(model: nn.Module, name: str, clock: str, started: datetime.datetime) -> dict[str, Any]:
    parameter = next(model.parameters(), None)
    facts: dict[str, Any] = {
        "date": started.isoformat(timespec="seconds"),
        "talkerviz": talkerviz.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "root": name,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "clock": clock,
    }
    if parameter is not None:
        facts["device"] = str(parameter.device)
        facts["dtype"] = str(parameter.dtype).removeprefix("torch.")
        if parameter.is_cuda:
            facts["gpu"] = torch.cuda.get_device_name(parameter.device)
    return facts
