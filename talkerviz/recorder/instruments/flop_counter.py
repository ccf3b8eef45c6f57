"""What each call costs whatever runs it: floating-point operations, and the bytes it must move.

Every torch operator is seen as it is dispatched, with the tensors that it really gets: the cache's length, the rows
of an embedding, the experts that are hit. A call's bytes are those of an ideal implementation that keeps all that it
makes for itself on the chip: what it reads from outside, each byte once, and what it leaves behind. Watching
costs several times the run itself, so this is done in a run of its own, or on the meta device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from talkerviz.recorder.dataflow.meta_cache import MetaCache
from talkerviz.recorder.dataflow.op_rules import name_of
from talkerviz.recorder.dataflow.torch_modes import ActiveModes, OperatorMode, run_higher_order
from talkerviz.recorder.instruments.flop_formulas import EMBEDDING_BAGS, GROUPED, flops_of, is_view

# Operators that read only some rows of their first tensor; that write only some of it.
_READS_ROWS = frozenset(("embedding", "index", "gather", "index_select", *EMBEDDING_BAGS))
_WRITES_ROWS = frozenset(("index_put_", "index_copy_", "scatter_"))
_ONLY_WRITES = frozenset(("copy_", "fill_", "zero_", "normal_", "uniform_", "index_put_", "index_copy_", "scatter_"))
_MOST_STORAGES = 100_000

_Part = tuple[int, Any, int]
"""Storage, which part of it, how many bytes."""


class _NoSizesError(Exception):
    """A nested tensor, of which rows differ."""


@dataclass
class _Storage:
    born: int  # the operator that made it; -1 for what was there before
    bytes: int
    alive: StorageWeakRef | None


class CostMeter(OperatorMode):
    """While it is entered it notes every operator; as a gauge of a recording it knows which call each belongs to."""

    def __init__(self, thread: Callable[[], int], fault: Callable[[Exception], None]) -> None:
        """Make an instrument that watches nothing yet.

        Args:
            thread: gives the number of the calling thread; only the one that this is started on is seen.
            fault: see `OperatorMode`.
        """
        super().__init__(fault)
        self._thread = thread
        self._unknown: Counter[tuple[str, int]] = Counter()  # operators, each with the edge at which its call began
        self._unknown_in: dict[str, list[str]] = {}
        self._flops: list[int | None] = []  # an entry an operator, as in the next two
        self._reads: list[list[_Part]] = []
        self._writes: list[list[_Part]] = []
        self._unmeasured: list[bool] = []  # whether its bytes are not known
        self._edges: list[int] = []  # how many operators there were at each edge of a call
        self._elsewhere: list[int] = []  # how many edges there were at each of another thread
        self._open: list[int] = [-1]  # edges at which the open calls began, the outermost first
        self._made: list[list[int]] = [[]]  # by each open call, the outermost first: storages that are still there
        self._kept: dict[int, frozenset[int]] = {}  # at the edge that is a call's end
        self._storages: list[_Storage] = []
        self._numbers: dict[int, int] = {}
        self._meta = MetaCache()
        self._watching = ActiveModes(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and note it."""
        kwargs = kwargs or {}
        takes_functions = isinstance(func, HigherOrderOperator)
        out = run_higher_order(func, args, kwargs) if takes_functions else self._meta.run(func, args, kwargs)
        try:
            if takes_functions:
                self._note_higher_order(func, args, kwargs, out)
            elif not is_view(func):
                self._note(func, args, kwargs, out)
        except _NoSizesError:
            self._note_unmeasured(func)
        except Exception as error:
            self._note_unmeasured(func)
            self._fault(error)
        return out

    def start(self) -> None:
        """Watch this thread's operators."""
        self._own_thread = self._thread()
        self._watching.begin()

    def stop(self) -> None:
        """Watch no more."""
        self._watching.end()

    def stamp(self, beginning: bool) -> None:
        """Note an edge of a call, and at its end which of the storages made inside are still there: its results."""
        if self._thread() != self._own_thread:
            self._elsewhere.append(len(self._edges))
            return
        if beginning:
            self._made.append([])
            self._open.append(len(self._edges))
        else:
            self._open.pop()
            made = self._made.pop()
            kept = [number for number in made if not self._expired(number)]
            self._kept[len(self._edges)] = frozenset(kept)
            self._made[-1] += kept
        self._edges.append(len(self._reads))

    def _expired(self, number: int) -> bool:
        alive = self._storages[number].alive
        return alive is None or bool(alive.expired())

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        name = func._overloadpacket.__name__
        flops = flops_of(func, args, kwargs, out)
        here = len(self._flops)
        made = _with_storage(out)
        reads, writes = [], []
        arguments = func._schema.arguments
        given = [(arguments[place], value) for place, value in enumerate(args)]
        given += [(argument, kwargs[argument.name]) for argument in arguments if argument.name in kwargs]
        named = {argument.name: value for argument, value in given}
        only_writes = name in _ONLY_WRITES and not (named.get("accumulate") or named.get("reduce"))
        mutated = set()
        for place, (argument, value) in enumerate(given):
            written = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _with_storage(value):
                part = self._part(tensor, -1)
                if written:
                    mutated.add(part[0])
                    if name in _WRITES_ROWS:
                        part = self._rows(part, here, _written(name, args))
                    writes.append(part)
                elif place == 0 and name in _READS_ROWS and made:
                    part = self._rows(part, here, _read(name, args, made[0]))
                elif name in GROUPED and tensor.dim() == 3 and (ends := named.get("offs")) is not None:
                    reads += [self._part(tensor[group], -1) for group in _groups_hit(args[0], args[1], ends)]
                    continue
                if not (written and only_writes):
                    reads.append(part)
        writes += [part for tensor in made if (part := self._part(tensor, here))[0] not in mutated]
        if flops is None:
            self._unknown[name, self._open[-1]] += 1
        self._append(flops, reads, writes, False)

    def _note_higher_order(self, func: HigherOrderOperator, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """Note an operator that runs functions: `flex_attention` reads what it is given; of `cond` nothing is known."""
        if func not in flop_registry:
            self._note_unmeasured(func)
            return
        flops, here = int(flop_registry[func](*args, **kwargs, out_val=out)), len(self._flops)
        reads = [self._part(tensor, -1) for tensor in _with_storage((args, kwargs))]
        self._append(flops, reads, [self._part(tensor, here) for tensor in _with_storage(out)], False)

    def _note_unmeasured(self, func: Any) -> None:
        """Note an operator of which neither arithmetic nor bytes are known."""
        self._unknown[name_of(func), self._open[-1]] += 1
        self._append(None, [], [], True)

    def _append(self, flops: int | None, reads: list[_Part], writes: list[_Part], unmeasured: bool) -> None:
        self._flops.append(flops)
        self._reads.append(reads)
        self._writes.append(writes)
        self._unmeasured.append(unmeasured)

    def _part(self, tensor: Tensor, born: int) -> _Part:
        if tensor.is_nested:
            raise _NoSizesError
        storage = tensor.untyped_storage()
        number = self._numbers.get(storage._cdata)
        if number is None:
            # A weak reference: it keeps no memory, but no other storage gets its address while it is held.
            reference = StorageWeakRef(storage)
            if len(self._numbers) >= _MOST_STORAGES:
                self._forget_the_dead()
            number = self._numbers[reference.cdata] = len(self._storages)
            self._storages.append(_Storage(born, storage.nbytes(), reference))
            if born >= 0:
                self._made[-1].append(number)
        sizes, strides = tensor.shape, tensor.stride()
        # A dimension of stride 0 is one row, seen many times.
        elements = 1
        for size, stride in zip(sizes, strides, strict=True):
            elements *= size if stride else min(size, 1)
        return number, (tensor.storage_offset(), sizes, strides), elements * tensor.element_size()

    def _rows(self, part: _Part, here: int, elements: int | None) -> _Part:
        """Some rows of a part, of so many elements together; all of it where that is not known."""
        number, (_, sizes, _), size = part
        if elements is not None and (whole := prod(sizes)):
            size = min(size, elements * size // whole)
        return number, ("rows", here), size

    def _forget_the_dead(self) -> None:
        for address, number in list(self._numbers.items()):
            storage = self._storages[number]
            if storage.alive is not None and storage.alive.expired():
                storage.alive = None
                del self._numbers[address]

    def measured(self, calls: pd.DataFrame, edges: pd.DataFrame) -> dict[str, Any]:
        """Columns for a trace's calls, whose begin and end are the edges given for each thread."""
        found = np.zeros((len(calls), 3), dtype=np.int64)
        rows = np.flatnonzero(edges["thread"].to_numpy() == self._own_thread)
        at = np.array([*self._edges, len(self._flops)])
        edge = {name: np.minimum(edges[name].to_numpy()[rows], len(self._edges)) for name in ("begin", "end")}
        begin, end = at[edge["begin"]], at[edge["end"]]
        unknown = np.cumsum([0, *(flops is None for flops in self._flops)])
        total = np.cumsum([0, *(flops or 0 for flops in self._flops)])
        found[rows, 0] = total[end] - total[begin]
        found[rows, 1:] = self._bytes(begin, end, [self._kept.get(last, frozenset()) for last in edge["end"].tolist()])
        paths = dict(zip(edges["begin"].to_numpy()[rows].tolist(), calls["path"].to_numpy()[rows], strict=True))
        for name, begun in self._unknown:
            if begun in paths and paths[begun] not in (places := self._unknown_in.setdefault(name, [])):
                places.append(paths[begun])
        unseen = np.ones(len(calls), dtype=bool)
        # What others called meanwhile may have been a call's own work, given to them.
        others = [np.searchsorted(np.sort(self._elsewhere), edge[name], side="right") for name in ("begin", "end")]
        unmeasured = np.cumsum([0, *self._unmeasured])
        unseen[rows] = (others[0] != others[1]) | (unmeasured[end] != unmeasured[begin])
        missing = np.ones(len(calls), dtype=bool)
        missing[rows] = (others[0] != others[1]) | (unknown[end] != unknown[begin])
        return {
            "flops": pd.arrays.IntegerArray(found[:, 0].copy(), missing),
            "bytes_read": pd.arrays.IntegerArray(found[:, 1].copy(), unseen.copy()),
            "bytes_written": pd.arrays.IntegerArray(found[:, 2].copy(), unseen.copy()),
        }

    def facts(self) -> dict[str, Any]:
        """Operators whose arithmetic is not known: how often they ran, and in which modules."""
        if not self._unknown:
            return {}
        often: Counter[str] = Counter()
        for (name, _), times in self._unknown.items():
            often[name] += times
        return {"unknown_operators": dict(often.most_common()), "unknown_operators_in": self._unknown_in}

    def _bytes(self, begin: np.ndarray, end: np.ndarray, kept: list[frozenset[int]]) -> np.ndarray:
        """Bytes read and written by calls, in their order, which begin and end after so many operators."""
        moved = np.zeros((len(begin), 2), dtype=np.int64)
        inside: list[tuple[int, int, int, dict[int, dict[Any, int]], dict[int, dict[Any, int]]]] = []
        following = 0

        def close(until: int) -> None:
            while inside and inside[-1][2] <= until:
                row, _, _, read, written = inside.pop()
                moved[row] = self._total(read), self._total(written)

        for here in range(len(self._flops)):
            close(here)
            while following < len(begin) and begin[following] <= here:
                if end[following] > here:
                    inside.append((following, int(begin[following]), int(end[following]), {}, {}))
                following += 1
            for number, part, size in self._reads[here]:
                born = self._storages[number].born
                for _, first, _, read, _ in reversed(inside):
                    if born >= first:
                        break  # made inside this call, and so inside all around it
                    read.setdefault(number, {})[part] = size
            for number, part, size in self._writes[here]:
                storage = self._storages[number]
                for row, first, _, _, written in reversed(inside):
                    if storage.born < first or number in kept[row]:
                        written.setdefault(number, {})[part] = size
        close(len(self._flops))
        return moved

    def _total(self, parts: dict[int, dict[Any, int]]) -> int:
        # Parts may overlap; together they are no more than there is.
        return sum(min(self._storages[number].bytes, sum(sizes.values())) for number, sizes in parts.items())


def _with_storage(value: Any) -> list[Tensor]:
    """The tensors in a value whose bytes can be told; a sparse one is made of others."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]


def _read(name: str, args: Sequence[Any], made: Tensor) -> int:
    """How many elements an operator of `_READS_ROWS` reads: as many as it gives, if it does not add them up."""
    return args[1].numel() * args[0].shape[-1] if name in EMBEDDING_BAGS else made.numel()


def _groups_hit(one: Tensor, two: Tensor, ends: Tensor) -> Sequence[int]:
    """The groups of a product that have rows, or columns; on the meta device as many as can have."""
    if not ends.is_meta:
        return [group for group, size in enumerate(ends.diff(prepend=ends.new_zeros(1)).tolist()) if size]
    return range(min(len(ends), len(one) if two.dim() == 3 else two.shape[-1]))


def _written(name: str, args: Sequence[Any]) -> int | None:
    """How many elements an operator of `_WRITES_ROWS` writes; None where a mask says which."""
    if name != "index_put_":
        written: Tensor = args[2 if name == "scatter_" else 3]  # the index of a scatter has an entry for each
        return written.numel()
    tensor, indices = args[:2]
    chosen = [index for index in indices if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in chosen):
        return None
    beside = [size for size, index in zip_longest(tensor.shape, indices) if index is None]
    return int(prod(torch.broadcast_shapes(*(index.shape for index in chosen))) * prod(beside))
