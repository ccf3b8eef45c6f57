"""Which operations made what is in a tensor: kept by storage, and by region of a storage.

A view has its base's storage, so that there is nothing to do for one. Only weak references are kept: they hold no
memory, but while one is held no other storage gets its address.

A region is the span of bytes between a tensor's first element and its last. Where a write leaves some of the bytes in
its span as they were, as a slice of a cache does, what is there then was made from what was there before: the write's
operation has an edge with `state` from those that it left something of.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from talkerviz.recorder.dataflow.passthrough import Passed, sources_of

Producers = tuple[int, ...]
"""Numbers of operations."""

_END = 1 << 62
_lo, _hi = attrgetter("lo"), attrgetter("hi")
_FEWEST_TO_SWEEP = 1_000


@dataclass(slots=True)
class _Span:
    lo: int
    hi: int
    producers: Producers
    patch: bool = False  # written in part
    read: int = -1  # the operation that read it first


@dataclass(slots=True)
class Storage:
    """What is known of one storage.

    Attributes:
        alive: guards its address.
        bytes: its size when first met.
        kept: whether it is a parameter's or buffer's of the model.
        foreign: whether it was there before the run, and is none of the model's.
        input: the operation that stands for what was in it before; -1 for none as yet.
        spans: what was written where; they do not overlap, and are in order.
        over: from operations in `spans` to others in `spans` that they were made from, by edges with `state`.
        passed: calls that returned a tensor of it as they had received it, in order.
    """

    alive: StorageWeakRef
    bytes: int
    kept: bool = False
    foreign: bool = True
    input: int = -1
    spans: list[_Span] = field(default_factory=list)
    over: dict[int, frozenset[int]] = field(default_factory=dict)
    passed: list[Passed] = field(default_factory=list)


class Provenance:
    """All storages that were met.

    Args:
        met: called with a tensor, and its storage, that is read and was there before the run; gives the number of an
            operation that stands for it, or -1.
        link: called with two operations, of which the second left something of what the first had made.
    """

    def __init__(self, met: Callable[[Tensor, Storage], int], link: Callable[[int, int], None]) -> None:
        self._met = met
        self._link = link
        self._storages: dict[int, Storage] = {}
        self._sweep_at = _FEWEST_TO_SWEEP

    def keep(self, tensors: Iterable[Tensor | None]) -> None:
        """Note the storages of a model's parameters and buffers, but of those that operations made."""
        for tensor in tensors:
            storage = None if tensor is None else self.storage(tensor)
            if storage is not None and storage.foreign:
                storage.kept, storage.foreign = True, False

    def storage(self, tensor: Tensor) -> Storage | None:
        """A tensor's storage; None where it has none that can be told, as a sparse one."""
        return self._storage(tensor)[0]

    def _storage(self, tensor: Tensor) -> tuple[Storage | None, bool]:
        """And whether it was not known."""
        tensor = within(tensor)
        try:
            untyped = tensor.untyped_storage()
            found = self._storages.get(untyped._cdata)
        except (NotImplementedError, RuntimeError, ValueError, TypeError):
            return None, False
        if found is not None:
            return found, False
        if len(self._storages) >= self._sweep_at:
            self._forget_the_dead()
        alive = StorageWeakRef(untyped)
        made = self._storages[alive.cdata] = Storage(alive, untyped.nbytes())
        return made, True

    def _forget_the_dead(self) -> None:
        self._storages = {cdata: one for cdata, one in self._storages.items() if not one.alive.expired()}
        self._sweep_at = max(_FEWEST_TO_SWEEP, 2 * len(self._storages))

    def read(self, tensor: Tensor, reader: int) -> Producers:
        """What made a tensor's values; `reader` is the operation that reads them, or the next one."""
        storage = self.storage(tensor)
        if storage is None or not tensor.numel():
            return ()
        return self._through_calls(tensor, storage, self.made(tensor, storage, reader))

    def made(self, tensor: Tensor, storage: Storage, reader: int) -> Producers:
        """The same, whatever calls have passed the tensor on since."""
        spans = storage.spans
        if len(spans) == 1 and spans[0].lo == 0 and spans[0].hi == _END:
            if spans[0].read < 0:
                spans[0].read = reader
            return spans[0].producers
        if not spans and not storage.foreign:
            return ()
        lo, hi, _ = _region(tensor)
        first, last = _touched(spans, lo, hi)
        touched = spans[first:last]
        if len(touched) > 1:
            touched = spans[first : first + self._join(tensor, storage, first, last)]
        for span in touched:
            if span.read < 0:
                span.read = reader
        return self._of(tensor, storage, touched, lo, hi)

    def _through_calls(self, tensor: Tensor, storage: Storage, producers: Producers) -> Producers:
        if not storage.passed or _is_ragged(tensor):
            return producers
        return sources_of(storage.passed, within(tensor), producers)

    def _of(self, tensor: Tensor, storage: Storage, touched: list[_Span], lo: int, hi: int) -> Producers:
        found = dict.fromkeys(producer for span in touched for producer in span.producers)
        if storage.foreign and sum(min(hi, span.hi) - max(lo, span.lo) for span in touched) < hi - lo:
            number = self._met(tensor, storage)
            if number >= 0:
                found[number] = None
        if len(found) > 1 and storage.over:
            # What another of them was made from is known by that one.
            for producer in list(found):
                for below in storage.over.get(producer, ()):
                    found.pop(below, None)
        return tuple(found)

    def _join(self, tensor: Tensor, storage: Storage, first: int, last: int) -> int:
        """Make one of the parts of a tensor that grows: it was read, written further, and is now read as a whole.

        So each reader of a cache has an edge from the last of its writes, and each write from the one before, in place
        of each reader having one from every write. Gives the number of spans that are there now.
        """
        lo, hi, _ = _region(tensor)
        spans = storage.spans
        touched = spans[first:last]
        newest = max((number for span in touched for number in span.producers), default=-1)
        grown = [
            span for span in touched if newest not in span.producers and span.producers and 0 <= span.read <= newest
        ]
        if not grown:
            return last - first
        before = {number for span in grown for number in span.producers}
        known = storage.over.get(newest, frozenset())
        for number in self._through_calls(tensor, storage, tuple(sorted(before - known))):
            self._link(number, newest)
        storage.over[newest] = known.union(before, *(storage.over.get(number, ()) for number in before))
        for span in grown:
            if lo <= span.lo and span.hi <= hi:
                span.producers = (newest,)
        joined: list[_Span] = []
        for span in touched:
            if joined and joined[-1].hi == span.lo and joined[-1].producers == span.producers == (newest,):
                joined[-1].hi = span.hi
                joined[-1].patch |= span.patch
            else:
                joined.append(span)
        spans[first:last] = joined
        _prune(storage)
        return len(joined)

    def write(self, tensor: Tensor, number: int, rows: bool) -> Producers:
        """An operation has written a tensor, or only some `rows` of it; gives those that it left something of."""
        storage = self.storage(tensor)
        if storage is None or not tensor.numel():
            return ()
        lo, hi, dense = _region(tensor)
        spans = storage.spans
        first, last = _touched(spans, lo, hi)
        before: Producers = ()
        partial = rows or not dense
        if partial:
            touched = spans[first:last]
            before = tuple(made for made in self._of(tensor, storage, touched, lo, hi) if made != number)
            before = self._through_calls(tensor, storage, before)
            # Slices that overlap are one from then on, or a cache of many slices would be a pile of remainders.
            lo = min([lo, *(span.lo for span in touched if span.patch)])
            hi = max([hi, *(span.hi for span in touched if span.patch)])
        if lo == 0 and hi >= storage.bytes:
            hi = _END
        rest: list[_Span] = []
        for span in spans[first:last]:
            if span.lo < lo:
                rest.append(_Span(span.lo, lo, span.producers, span.patch, span.read))
            if hi < span.hi:
                rest.append(_Span(hi, span.hi, span.producers, span.patch, span.read))
        spans[first:last] = sorted([*rest, _Span(lo, hi, (number,), partial)], key=_lo)
        if before:
            below = frozenset(before).union(*(storage.over.get(made, ()) for made in before))
            storage.over[number] = storage.over.get(number, frozenset()) | below
            _prune(storage)
        return before

    def make(self, tensor: Tensor, producers: Producers) -> bool:
        """A tensor has been made, if its storage is one that was not met before; gives whether it is."""
        storage, new = self._storage(tensor)
        if storage is None or not new:
            return False
        storage.foreign = False
        storage.spans = [_Span(0, _END, producers)]
        return True


def _touched(spans: list[_Span], lo: int, hi: int) -> tuple[int, int]:
    return bisect_right(spans, lo, key=_hi), bisect_left(spans, hi, key=_lo)


def within(tensor: Tensor) -> Tensor:
    """The tensor that one of a class of its own, as DTensor, is around; itself if there is no such, or are several."""
    while type(tensor) not in (Tensor, nn.Parameter) and is_traceable_wrapper_subclass(tensor):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if len(tensors) != 1:
            break
        tensor = tensors[0]
    return tensor


def _is_ragged(tensor: Tensor) -> bool:
    """Whether sizes and strides do not tell where a tensor's elements are: a nested one's rows differ."""
    tensor = within(tensor)
    return tensor.is_nested or is_traceable_wrapper_subclass(tensor)


def _region(tensor: Tensor) -> tuple[int, int, bool]:
    """The first byte of a tensor in its storage, the one after its last, and whether it has all that lie between."""
    if _is_ragged(tensor):
        return 0, _END, True
    tensor = within(tensor)
    sizes, strides = tuple(tensor.shape), tensor.stride()
    elements = extent = 1
    for size, stride in zip(sizes, strides, strict=True):
        extent += (size - 1) * stride
        if stride:
            elements *= size
    lo, each = int(tensor.storage_offset()), tensor.element_size()
    return lo * each, (lo + extent) * each, elements >= extent


def _prune(storage: Storage) -> None:
    """Operations of which nothing is left in the storage are not asked for again."""
    there = {storage.input, *(number for span in storage.spans for number in span.producers)}
    storage.over = {number: below & there for number, below in storage.over.items() if number in there}
