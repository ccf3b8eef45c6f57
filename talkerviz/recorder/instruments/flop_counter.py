"""FLOP and byte counter: the cost of each call on any device.

Every torch operator is seen as it is dispatched, with its actual tensors: the cache's length, the rows of an embedding,
the experts that are hit. A call's bytes are those of an ideal implementation that keeps all its intermediate results on
the chip: bytes read from outside the call, each once, and bytes that it leaves behind. Counting takes several times the
run itself, so this is done in a run of its own, or on the meta device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from talkerviz.recorder.dataflow.meta_cache import MetaCache
from talkerviz.recorder.dataflow.op_rules import name_of, rule_of, tensors_of
from talkerviz.recorder.dataflow.torch_modes import ActiveModes, OperatorMode, is_plain, run_higher_order
from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo
from talkerviz.recorder.instruments.flop_formulas import EMBEDDING_BAGS, GROUPED, elements_put, flops_of, is_view
from talkerviz.recorder.method_patch import hidden_modules

# Operators that read, or write, only some rows of their first tensor; and those that do not read what they write.
_READS_ROWS = frozenset(("embedding", "index", "gather", "index_select", *EMBEDDING_BAGS))
_EMBEDDINGS = frozenset(("embedding", *EMBEDDING_BAGS))
_WRITES_ROWS = frozenset(("index_put_", "index_copy_", "scatter_"))
_ONLY_WRITES = frozenset(("copy_", "fill_", "zero_", "normal_", "uniform_", "index_put_", "index_copy_", "scatter_"))
_CONTROL_FLOW = frozenset(("cond", "while_loop", "while_loop_stack_output", "map_impl", "scan", "associative_scan"))
_MAX_STORAGES = 100_000  # known by address, before those that are freed are dropped

_Part = tuple[int, Any, int]
"""Number of a storage, key of the part of it, bytes of the part."""


@dataclass
class _Storage:
    born: int  # number of the operator that made it; -1 if it was there before
    bytes: int
    alive: StorageWeakRef | None


class FlopCounter(OperatorMode, Instrument):
    """Instrument that gives `flops`, `bytes_read` and `bytes_written`, for calls of the thread it is attached on."""

    def __init__(self, run: RunContext) -> None:
        super().__init__(run.fault)
        self._thread = run.thread
        self._unknown: Counter[tuple[str, int]] = Counter()  # operators, each with the stamp at its call's entry
        self._unknown_in: dict[str, list[str]] = {}
        self._flops: list[int | None] = []  # an item an operator, as in the next three
        self._reads: list[list[_Part]] = []
        self._writes: list[list[_Part]] = []
        self._unmeasured: list[bool] = []  # whether its bytes are unknown
        self._faulty: list[int] = []  # operators at which the recorder itself failed, ascending
        self._stamps: list[int] = []  # number of operators at each entry or exit of a call
        self._elsewhere: list[int] = []  # number of stamps at each stamp of another thread
        self._open: list[int] = [-1]  # stamps at the entries of open calls, outermost first
        self._created: list[list[int]] = [[]]  # live storages that each open call created, outermost first
        self._kept: dict[int, frozenset[int]] = {}  # storages that outlive a call, by the stamp at its exit
        self._storages: list[_Storage] = []
        self._numbers: dict[int, int] = {}
        self._meta = MetaCache()
        self._watching = ActiveModes(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        kwargs = kwargs or {}
        if any(map(_dispatches, types)):
            return NotImplemented  # it runs operators on the tensors that it holds, and these are counted
        if _infers_shapes(args):
            return func(*args, **kwargs)
        takes_functions = isinstance(func, HigherOrderOperator)
        if takes_functions and func.name() in _CONTROL_FLOW:
            with hidden_modules():
                return func(*map(self._counted, args), **kwargs)
        if (
            not takes_functions
            and rule_of(func).composite
            and all(map(is_plain, tensors_of([*args, *kwargs.values()])))
        ):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = run_higher_order(func, args, kwargs) if takes_functions else self._meta.run(func, args, kwargs)
        try:
            if takes_functions:
                self._note_higher_order(func, args, kwargs, out)
            elif not is_view(func):
                self._note(func, args, kwargs, out)
        except Exception as error:
            self._note_unmeasured(func)
            self._faulty.append(len(self._flops) - 1)
            self._fault(error)
        return out

    def _counted(self, value: Any) -> Any:
        """Wrap a function in a higher-order operator's arguments so that its operators are counted."""
        if not callable(value) or isinstance(value, Tensor):
            return value

        def run(*args: Any) -> Any:
            with self:
                return value(*args)

        return run

    def attach(self, undo: Undo) -> None:
        """Count this thread's operators."""
        self._own_thread = self._thread()
        self._watching.begin()

    def stop(self) -> None:
        """Count no more."""
        self._watching.end()

    def stamp(self, entry: bool) -> None:
        """Note the number of operators; at a call's exit also the storages that it created and leaves, its results."""
        if self._thread() != self._own_thread:
            self._elsewhere.append(len(self._stamps))
            return
        if entry:
            self._created.append([])
            self._open.append(len(self._stamps))
        else:
            self._open.pop()
            created = self._created.pop()
            kept = [number for number in created if not self._expired(number)]
            self._kept[len(self._stamps)] = frozenset(kept)
            self._created[-1] += kept
        self._stamps.append(len(self._reads))

    def _expired(self, number: int) -> bool:
        alive = self._storages[number].alive
        return alive is None or bool(alive.expired())

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        name = func._overloadpacket.__name__
        try:
            flops = flops_of(func, args, kwargs, out)
        except RuntimeError:
            if not any(tensor.is_nested for tensor in tensors_of([*args, *kwargs.values()])):
                raise
            flops = None  # its formula needs sizes that a nested tensor does not have
        operator = len(self._flops)
        results = _with_storage(out)
        reads, writes = [], []
        schema = func._schema.arguments
        arguments = [(schema[position], value) for position, value in enumerate(args)]
        arguments += [(argument, kwargs[argument.name]) for argument in schema if argument.name in kwargs]
        named = {argument.name: value for argument, value in arguments}
        only_writes = name in _ONLY_WRITES and not (named.get("accumulate") or named.get("reduce"))
        mutated = set()
        for position, (argument, value) in enumerate(arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _with_storage(value):
                part = self._part(tensor, -1)
                if written:
                    mutated.add(part[0])
                    if name in _WRITES_ROWS:
                        part = self._rows(part, operator, _elements_written(name, args))
                    writes.append(part)
                elif position == 0 and name in _EMBEDDINGS and results and not args[1].is_meta:
                    reads += self._embedding_rows(part, args[1])
                    continue
                elif position == 0 and name in _READS_ROWS and results:
                    part = self._rows(part, operator, _elements_read(name, args, results[0]))
                elif name in GROUPED and tensor.dim() == 3 and (ends := named.get("offs")) is not None:
                    reads += [self._part(tensor[group], -1) for group in _groups_hit(args[0], args[1], ends)]
                    continue
                if not (written and only_writes):
                    reads.append(part)
        writes += [part for tensor in results if (part := self._part(tensor, operator))[0] not in mutated]
        if flops is None:
            self._unknown[name, self._open[-1]] += 1
        self._append(flops, reads, writes, False)

    def _note_higher_order(self, func: HigherOrderOperator, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """Note an operator that runs functions: `flex_attention` reads its arguments; the cost of `cond` is unknown."""
        if func not in flop_registry:
            self._note_unmeasured(func)
            return
        flops, operator = int(flop_registry[func](*args, **kwargs, out_val=out)), len(self._flops)
        reads = [self._part(tensor, -1) for tensor in _with_storage((args, kwargs))]
        self._append(flops, reads, [self._part(tensor, operator) for tensor in _with_storage(out)], False)

    def _note_unmeasured(self, func: Any) -> None:
        """Note an operator whose arithmetic and bytes are both unknown."""
        self._unknown[name_of(func), self._open[-1]] += 1
        self._append(None, [], [], True)

    def _append(self, flops: int | None, reads: list[_Part], writes: list[_Part], unmeasured: bool) -> None:
        self._flops.append(flops)
        self._reads.append(reads)
        self._writes.append(writes)
        self._unmeasured.append(unmeasured)

    def _part(self, tensor: Tensor, born: int) -> _Part:
        storage = tensor.untyped_storage()
        number = self._numbers.get(storage._cdata)
        if number is None:
            # A weak reference keeps no memory, but no other storage gets the address while the reference is held.
            reference = StorageWeakRef(storage)
            if len(self._numbers) >= _MAX_STORAGES:
                self._drop_freed()
            number = self._numbers[reference.cdata] = len(self._storages)
            self._storages.append(_Storage(born, storage.nbytes(), reference))
            if born >= 0:
                self._created[-1].append(number)
        if tensor.is_nested:  # rows differ in size
            return number, (0, (tensor.numel(),), ()), tensor.numel() * tensor.element_size()
        sizes, strides = tensor.shape, tensor.stride()
        # A dimension of stride 0 is a single row, repeated.
        elements = 1
        for size, stride in zip(sizes, strides, strict=True):
            elements *= size if stride else min(size, 1)
        return number, (tensor.storage_offset(), sizes, strides), elements * tensor.element_size()

    def _rows(self, part: _Part, operator: int, elements: int | None) -> _Part:
        """Return the rows of a part that have this many elements; the whole part if the number is None."""
        number, (_, sizes, _), size = part
        if elements is not None and (whole := prod(sizes)):
            size = min(size, elements * size // whole)
        return number, ("rows", operator), size

    def _embedding_rows(self, part: _Part, indices: Tensor) -> list[_Part]:
        """Return the rows of an embedding that are read, each once however often it is hit in a call."""
        number, (_, sizes, _), size = part
        return [(number, ("row", row), size // max(sizes[0], 1)) for row in indices.unique().tolist()]

    def _drop_freed(self) -> None:
        for address, number in list(self._numbers.items()):
            storage = self._storages[number]
            if storage.alive is not None and storage.alive.expired():
                storage.alive = None
                del self._numbers[address]

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return FLOPs and bytes of calls; as facts, unknown operators: how many ran, and in which modules."""
        cost = np.zeros((len(calls), 3), dtype=np.int64)
        rows = np.flatnonzero(edges["thread"].to_numpy() == self._own_thread)
        operators = np.array([*self._stamps, len(self._flops)])
        edge = {name: np.minimum(edges[name].to_numpy()[rows], len(self._stamps)) for name in ("begin", "end")}
        begin, end = operators[edge["begin"]], operators[edge["end"]]
        unknown = np.cumsum([0, *(flops is None for flops in self._flops)])
        total = np.cumsum([0, *(flops or 0 for flops in self._flops)])
        cost[rows, 0] = total[end] - total[begin]
        cost[rows, 1:] = self._bytes(begin, end, [self._kept.get(last, frozenset()) for last in edge["end"].tolist()])
        paths = dict(zip(edges["begin"].to_numpy()[rows].tolist(), calls["path"].to_numpy()[rows], strict=True))
        for name, entry in self._unknown:
            if entry in paths and paths[entry] not in (modules := self._unknown_in.setdefault(name, [])):
                modules.append(paths[entry])
        unseen = np.ones(len(calls), dtype=bool)
        # Calls of other threads meanwhile may have been this call's own work, delegated to them.
        others = [np.searchsorted(np.sort(self._elsewhere), edge[name], side="right") for name in ("begin", "end")]
        unmeasured = np.cumsum([0, *self._unmeasured])
        unseen[rows] = (others[0] != others[1]) | (unmeasured[end] != unmeasured[begin])
        delegated = np.ones(len(calls), dtype=bool)
        # What was not counted by a fault is no lower bound that a note explains.
        faulty = [np.searchsorted(self._faulty, each, side="left") for each in (begin, end)]
        delegated[rows] = (others[0] != others[1]) | (faulty[0] != faulty[1])
        uncounted = np.zeros(len(calls), dtype=np.int64)
        uncounted[rows] = unknown[end] - unknown[begin]
        columns = {
            "flops": pd.arrays.IntegerArray(cost[:, 0].copy(), delegated),
            "uncounted_operators": pd.arrays.IntegerArray(uncounted, delegated.copy()),
            "bytes_read": pd.arrays.IntegerArray(cost[:, 1].copy(), unseen.copy()),
            "bytes_written": pd.arrays.IntegerArray(cost[:, 2].copy(), unseen.copy()),
        }
        counts: Counter[str] = Counter()
        for (name, _), count in self._unknown.items():
            counts[name] += count
        facts = {"unknown_operators": dict(counts.most_common()), "unknown_operators_in": self._unknown_in}
        return Readings(columns, facts)

    def _bytes(self, begin: np.ndarray, end: np.ndarray, kept: list[frozenset[int]]) -> np.ndarray:
        """Return the bytes that each call reads and writes, shape [calls, 2].

        Args:
            begin: number of operators at each call's entry; calls are in the order of their entries.
            end: number of operators at each call's exit.
            kept: storages that outlive each call.
        """
        moved = np.zeros((len(begin), 2), dtype=np.int64)
        inside: list[tuple[int, int, int, dict[int, dict[Any, int]], dict[int, dict[Any, int]]]] = []
        following = 0

        def close(until: int) -> None:
            while inside and inside[-1][2] <= until:
                row, _, _, read, written = inside.pop()
                moved[row] = self._total(read), self._total(written)

        for operator in range(len(self._flops)):
            close(operator)
            while following < len(begin) and begin[following] <= operator:
                if end[following] > operator:
                    inside.append((following, int(begin[following]), int(end[following]), {}, {}))
                following += 1
            for number, part, size in self._reads[operator]:
                born = self._storages[number].born
                for _, first, _, read, _ in reversed(inside):
                    if born >= first:
                        break  # created inside this call, and so inside all calls around it
                    read.setdefault(number, {})[part] = size
            for number, part, size in self._writes[operator]:
                storage = self._storages[number]
                for row, first, _, _, written in reversed(inside):
                    if storage.born < first or number in kept[row]:
                        written.setdefault(number, {})[part] = size
        close(len(self._flops))
        return moved

    def _total(self, parts: dict[int, dict[Any, int]]) -> int:
        # Parts may overlap; together they are at most the whole storage.
        return sum(min(self._storages[number].bytes, sum(sizes.values())) for number, sizes in parts.items())


def _dispatches(kind: Any) -> bool:
    """Return whether a tensor subclass runs other operators for its own, as those of quantised weights and DTensor."""
    return not issubclass(kind, FakeTensor) and kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def _infers_shapes(args: Any) -> bool:
    """Return whether an operator runs inside one on fake tensors, for its shape alone, as DTensor does."""
    return any(isinstance(leaf, FakeTensor) and leaf.fake_mode.in_kernel_invocation for leaf in tensors_of(list(args)))


def _with_storage(value: Any) -> list[Tensor]:
    """Return the tensors in a value whose bytes are known; a sparse tensor is made of others."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]


def _elements_read(name: str, args: Sequence[Any], result: Tensor) -> int:
    """Return the number of elements that an operator of `_READS_ROWS` reads: those of its result, unless it sums."""
    return args[1].numel() * args[0].shape[-1] if name in EMBEDDING_BAGS else result.numel()


def _groups_hit(a: Tensor, b: Tensor, ends: Tensor) -> Sequence[int]:
    """Return the groups of a product that have rows, or columns; on the meta device the most that can have any."""
    if not ends.is_meta:
        return [group for group, size in enumerate(ends.diff(prepend=ends.new_zeros(1)).tolist()) if size]
    return range(min(len(ends), len(a) if b.dim() == 3 else b.shape[-1]))


def _elements_written(name: str, args: Sequence[Any]) -> int:
    """Return the number of elements that an operator of `_WRITES_ROWS` writes."""
    if name != "index_put_":
        source: Tensor = args[2 if name == "scatter_" else 3]  # the index of a scatter has an item an element
        return source.numel()
    return elements_put(*args[:2])
