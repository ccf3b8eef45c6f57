"""Record of one run: calls, modules and run facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from typing_extensions import Self, TypeVar

from talkerviz.trace.call_tree import parent_rows
from talkerviz.trace.calls_table import collections_frame
from talkerviz.trace.event_blocks import MAGIC
from talkerviz.trace.flow import Flow, flow_between, flow_inside, select_flow
from talkerviz.trace.labels import format_count
from talkerviz.trace.parquet import check_name, read_trace, write_trace
from talkerviz.trace.schema import ModuleInfo
from talkerviz.trace.validation import DamagedError, check_facts, check_tensors, check_trace

RecordT = TypeVar("RecordT", bound="TraceRecord", default="TraceRecord")


class TraceError(ValueError):
    """A trace file that cannot be read; the message names the file and says what to do."""


@dataclass(frozen=True, eq=False, repr=False)
class TraceRecord:
    """Record of one run.

    Attributes:
        calls: calls table, a row a call, in the order in which calls began. Its columns are those of
            [`schema.CALLS`][talkerviz.trace.schema.CALLS] without the two id columns. `inputs` and `outputs` hold
            tuples of `TensorInfo`; times are nanoseconds; unmeasured values are `<NA>`.
        modules: all modules of the traced tree, called or not, in registration order.
        facts: facts about the run: versions, device, threads, command, scenario, clock. JSON values only.
        flow: flow of tensors; None if not recorded.
        collections: Python's garbage collections, which no module's self time includes; the columns are those of
            [`schema.COLLECTIONS`][talkerviz.trace.schema.COLLECTIONS].
    """

    calls: pd.DataFrame
    modules: tuple[ModuleInfo, ...]
    facts: Mapping[str, Any]
    flow: Flow | None = None
    collections: pd.DataFrame = field(default_factory=collections_frame)

    def __repr__(self) -> str:
        calls = self.calls
        parts = [f"{format_count(len(calls), 'call')} of {format_count(calls['path'].nunique(), 'module')}"]
        if phases := self.phases:
            parts.append(f"phase{'s' if len(phases) > 1 else ''} {', '.join(phases)}")
        if frames := len(calls[["run", "frame"]].dropna().drop_duplicates()):
            parts.append(format_count(frames, "frame"))
        if calls["host_self_ns"].notna().any():
            took = calls["host_self_ns"].sum() / 1e6
            parts.append(f"{took:,.{3 if took < 10 else 0}f} ms in calls")
        return f"<Trace of {self.facts.get('model', 'a model')}: {'; '.join(parts)}>"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TraceRecord)
            and self.modules == other.modules
            and dict(self.facts) == dict(other.facts)
            and self.calls.equals(other.calls)
            and self.flow == other.flow
            and self.collections.equals(other.collections)
        )

    __hash__ = None  # type: ignore[assignment]  # holds a DataFrame

    def select(
        self,
        phase: str | None = None,
        frame: int | None = None,
        depth: int | None = None,
        module: str | None = None,
        run: int | None = None,
        rank: int | None = None,
    ) -> Self:
        """Select calls; all arguments must match.

        The flow is selected with them: operations of a call that is too deep move to its nearest selected ancestor.

        Args:
            phase: phase of the calls.
            frame: frame of the calls.
            depth: largest depth of the calls; 0 is the top.
            module: shell-style pattern of module paths; calls inside matching modules are selected as well.
            run: run of the calls. Only the first run has a flow.
            rank: rank of the calls, in a merged trace.

        Returns:
            A trace with the selected calls and all modules.

        Raises:
            ValueError: the trace has no such phase, frame, module, run or rank; the message lists what it has.
        """
        if rank is not None:
            return select_rank(self, rank).select(phase, frame, depth, module, run)
        if run is not None:
            of_run = (self.calls["run"] == run).to_numpy()
            if not of_run.any():
                known = ", ".join(map(str, self.calls["run"].unique())) or "none"
                raise ValueError(f"no run {run} in this trace: it has {known}")
            calls = self.calls["call"].to_numpy()[of_run]
            first = -1 if of_run[0] else int(calls[0])  # operations before all calls belong to the first run
            flow = self.flow and flow_between(self.flow, first, int(calls[-1]))
            return replace(self, calls=self.calls[of_run], flow=flow).select(phase, frame, depth, module)
        if module is not None:
            matches = self.calls["path"].isin(self.matching_paths(module))
            return self.inside(self.calls["call"].to_numpy()[matches]).select(phase, frame, depth)
        if phase is None and frame is None and depth is None:
            return self
        keep = np.ones(len(self.calls), dtype=bool)
        if phase is not None:
            keep &= (self.calls["phase"] == phase).to_numpy()
            if not keep.any():
                raise ValueError(f"no phase {phase!r} in this trace: choose from {', '.join(self.phases)}")
        if frame is not None:
            of_frame = (self.calls["frame"] == frame).fillna(False).to_numpy(dtype=bool)
            if not of_frame.any():
                last = self.calls["frame"].max()
                known = "it has no frames" if last is pd.NA else f"it has frames 0 to {last}"
                raise ValueError(f"no frame {frame} in this trace: {known}")
            keep &= of_frame
        if depth is not None:
            keep &= (self.calls["depth"] <= depth).to_numpy()
        flow = self.flow and select_flow(self.flow, self.calls, keep, phase, frame)
        return replace(self, calls=self.calls[keep], flow=flow)

    def inside(self, calls: np.ndarray) -> Self:
        """Select the calls of these numbers and all calls inside them."""
        parent = parent_rows(self.calls)
        keep = self.calls["call"].isin(calls).to_numpy(copy=True)
        by_depth = np.argsort(self.calls["depth"].to_numpy(), kind="stable")
        depth = self.calls["depth"].to_numpy()[by_depth]
        for level in np.split(by_depth, np.flatnonzero(np.diff(depth)) + 1):
            keep[level] |= (parent[level] >= 0) & keep[parent[level]]
        flow = self.flow and flow_inside(self.flow, self.calls["call"].to_numpy()[keep])
        return replace(self, calls=self.calls[keep], flow=flow)

    def collections_inside(self) -> pd.DataFrame:
        """Return the garbage collections inside these calls, which their self times leave out."""
        inside: pd.DataFrame = self.collections[self.collections["call"].isin(self.calls["call"])]
        return inside

    def matching_paths(self, pattern: str) -> list[str]:
        """Return the paths of called modules that match a shell-style pattern.

        Raises:
            ValueError: no called module matches.
        """
        paths = self.calls["path"].cat.categories
        matches = [str(path) for path in paths if fnmatchcase(path, pattern)]
        if not matches:
            some = f": paths are such as {paths[len(paths) // 2]!r}" if len(paths) else ""
            raise ValueError(f"no module that was called fits {pattern!r}{some}")
        return matches

    @property
    def phases(self) -> list[str]:
        """Names of the phases, in the order in which they first occur."""
        return [str(phase) for phase in self.calls["phase"].dropna().unique()]

    def save(self, file: str | Path | BinaryIO) -> None:
        """Write the trace as one Parquet file, atomically.

        Raises:
            ValueError: the file's suffix is that of another format, such as `run.csv`; see `render`.
        """
        target = Path(file) if isinstance(file, str) else file
        if isinstance(target, Path):
            check_name(target)
        write_trace(target, self.calls, self.modules, self.facts, self.flow, self.collections)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a trace file, or the `.partial` file of a run that is going on or was killed.

        Raises:
            TraceError: the file does not exist, is damaged, or is not a talkerviz trace.
        """
        path = Path(path)
        if not path.exists():
            partial = path.with_name(f"{path.name}.partial")
            hint = (
                f"open {partial}, left by an unfinished run"
                if partial.exists()
                else f"make one with `talkerviz trace -o {path}`"
            )
            raise TraceError(f"{path}: no such file; {hint}")
        if path.is_dir():
            raise TraceError(f"{path}: is a directory, not a trace file")
        with path.open("rb") as file:
            head = file.read(4)
        try:
            if head == b"PAR1":
                return cls(*read_trace(path))
            if head == MAGIC:
                return cls._read_log(path)
        except DamagedError as error:
            raise TraceError(f"{path} is damaged: {error}") from error
        except ValueError as error:
            raise TraceError(f"{path}: {error}") from error
        raise TraceError(
            f"{path}: {'not a talkerviz trace (a trace is a Parquet file)' if head else 'an empty file, not a trace'}; "
            "record it again"
        )

    @classmethod
    def _read_log(cls, path: Path) -> Self:
        from talkerviz.trace.event_log import read_log
        from talkerviz.trace.log_tables import log_frame

        log = read_log(path)
        facts = {**log.facts, "unfinished": True}
        try:
            check_facts(facts)
            calls, collections = log_frame(log)
            check_tensors(log.tensors.decoded())
            check_trace(calls, log.modules, facts, None, collections)
        except DamagedError:
            raise
        except MemoryError as error:
            raise DamagedError("it takes more memory than is available") from error
        except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise DamagedError(f"its content does not fit: {' '.join(repr(error).split())}") from error
        return cls(calls, log.modules, facts, collections=collections)


def ranks_of(trace: TraceRecord) -> list[int]:
    """Return the ranks of a trace, in order; empty for a single-process trace."""
    processes = trace.facts.get("processes", [trace.facts["process"]] if "process" in trace.facts else [])
    return [int(process["rank"]) for process in processes]


def select_rank(trace: RecordT, rank: int) -> RecordT:
    """Select one rank of a merged trace; a single rank's trace is returned whole. Times stay as merged.

    Raises:
        ValueError: the trace has no such rank.
    """
    ranks = ranks_of(trace)
    if rank not in ranks:
        known = f"it has {', '.join(map(str, ranks))}" if ranks else "it is of a single process"
        raise ValueError(f"no rank {rank} in this trace: {known}")
    processes = trace.facts.get("processes")
    if processes is None:
        return trace
    position = ranks.index(rank)
    common = {name: value for name, value in trace.facts.items() if name not in ("processes", "clocks")}
    own = {name: value for name, value in processes[position].items() if name not in ("modules", "differs")}
    first = sum(process["modules"] for process in processes[:position])
    calls = trace.calls[(trace.calls["rank"] == rank).to_numpy()]
    number = calls["call"].to_numpy()
    flow = trace.flow and (flow_between(trace.flow, int(number[0]) - 1, int(number[-1])) if len(number) else None)
    return replace(
        trace,
        calls=calls,
        modules=trace.modules[first : first + processes[position]["modules"]],
        facts={**common, **processes[position]["differs"], "process": own},
        flow=flow,
    )


def check_one_rank(trace: TraceRecord) -> None:
    """Reject a trace of several ranks.

    Raises:
        ValueError: the trace has several ranks.
    """
    ranks = trace.calls["rank"].unique().tolist()
    if len(ranks) > 1:
        known = ", ".join(map(str, sorted(ranks)))
        raise ValueError(f"the trace has ranks {known}; choose one with --rank, or open its file")
