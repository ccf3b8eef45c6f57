"""Protocol for instruments: sampled at call entry and exit, each adds columns and facts to a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
from torch import nn

from talkerviz.trace.event_log import Mark
from talkerviz.trace.flow import Flow

Undo = list[Callable[[], None]]


@dataclass(frozen=True)
class RunContext:
    """Facts and functions of a recording, for its instruments.

    Attributes:
        model: the recorded model.
        paths: path of each recorded module, by its `id`.
        modules: modules by their number in events; those that join later are not among them.
        device_type: torch's name of the accelerator that holds the model's parameters, such as `cuda`; empty for none.
        devices: indices of its devices that do.
        origin_ns: host time that counts as 0.
        timed: whether events hold times.
        start: the mark that the recording begins with.
        marks: marks by number; the recording appends to it.
        mark_number: returns the number of the current mark in `marks`.
        thread: returns the number of the calling thread.
        fault: called with an exception of an instrument's own bookkeeping.
    """

    model: nn.Module
    paths: Mapping[int, str]
    modules: Sequence[nn.Module]
    device_type: str
    devices: tuple[int, ...]
    origin_ns: int
    timed: bool
    start: Mark
    marks: Sequence[Mark]
    mark_number: Callable[[], int]
    thread: Callable[[], int]
    fault: Callable[[Exception], None]


@dataclass(frozen=True)
class Readings:
    """Result of an instrument after the run.

    Attributes:
        columns: columns of the calls table, by name, a value a call; a name that the schema does not have is kept in
            memory, and not in a file.
        facts: facts of the run, JSON values.
        flow: the data flow, of the instrument that tracks it.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    flow: Flow | None = None


class Instrument:
    """Something measured during a recording; each method does nothing by default.

    A recording calls `attach`, then during the run the `stamp` and `on_` methods, `stop`, and `finish` and `add_calls`
    last. A method that a class does not define costs nothing.

    Attributes:
        inside_tap: whether `attach` comes before the tap patches `nn.Module.__call__`, so that a patch of this
            instrument runs inside the recorded call and not around it.
        device_stamps: stamps on a device that the log of calls takes itself, of type `DeviceStamps`; None for none.
    """

    inside_tap: ClassVar[bool] = False
    device_stamps: Any = None

    def attach(self, undo: Undo) -> None:
        """Begin to measure, on the thread that the recording begins on.

        Args:
            undo: functions that take patches off again, called in reverse order; append each before it is needed.
        """

    def stamp(self, entry: bool) -> None:
        """Sample at the entry of a call, or else at its exit, on the thread of the call."""

    def stamp_collective(self, entry: bool) -> None:
        """Sample at the entry or exit of a collective, which is a row of the calls table without a module."""
        self.stamp(entry)

    def on_mark(self, mark: Mark) -> None:
        """Note that the calling thread enters another phase, frame or step."""

    def on_replica(self, replica: nn.Module, module: nn.Module) -> None:
        """Note that `DataParallel` made a replica of a recorded module."""

    def on_write(self) -> None:
        """Read what is ready, without waiting: a batch of events has been written to disk."""

    def stop(self) -> None:
        """End measuring: the run is over, and patches are off. Wait for the device here."""

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return columns and facts.

        Args:
            calls: the calls table.
            edges: for each call its `thread`, the indices `begin` and `end` of its stamps among those of the thread,
                and `paused`, the nanoseconds that the recorder had held up the thread by then.
        """
        return Readings()

    def add_calls(self, calls: pd.DataFrame, edges: pd.DataFrame) -> pd.DataFrame:
        """Return the calls table with calls that no Python code made; columns of all instruments are in it."""
        return calls


def implementations(instruments: Iterable[Instrument], method: str) -> list[Callable[..., Any]]:
    """Return the bound method of each instrument whose class defines it."""
    default = getattr(Instrument, method)
    return [getattr(each, method) for each in instruments if getattr(type(each), method) is not default]


def collective_stamps(instruments: Iterable[Instrument]) -> list[Callable[[bool], None]]:
    """Return the functions that sample collectives, of the instruments that sample at all."""
    return [
        each.stamp_collective
        for each in instruments
        if type(each).stamp is not Instrument.stamp or type(each).stamp_collective is not Instrument.stamp_collective
    ]


def apply_readings(
    instruments: Sequence[Instrument], calls: pd.DataFrame, edges: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any], Flow | None]:
    """Return the calls table with all columns and added calls, the facts, and the data flow if it was tracked.

    Args:
        instruments: the instruments, stopped.
        calls: the calls table.
        edges: the stamps of each call, see `Instrument.finish`.
    """
    facts: dict[str, Any] = {}
    flow = None
    for instrument in instruments:
        readings = instrument.finish(calls, edges)
        calls = calls.assign(**readings.columns)
        facts.update(readings.facts)
        flow = flow if readings.flow is None else readings.flow
    for instrument in instruments:
        calls = instrument.add_calls(calls, edges)
    return calls, facts, flow
