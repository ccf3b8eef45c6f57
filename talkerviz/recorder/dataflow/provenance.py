"""Producers of tensors' values: the operations that wrote each storage, by region of the storage.

A view shares its base's storage, so views need no bookkeeping. Only weak references to storages are kept: they hold no
tensor memory, but while one is held no other storage gets its address.

A region is the span of bytes between a tensor's first element and its last. If a write leaves some bytes of its region
unchanged, as writing a slice of a cache does, the new content depends on the old: the writing operation has an edge
with `state` from the operations that produced the bytes it left.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from talkerviz.recorder.dataflow.passthrough import Passthrough, sources_of

Producers = tuple[int, ...]
"""Numbers of the operations that produced a value."""

_END = 1 << 62  # beyond any byte of a storage
_lo, _hi = attrgetter("lo"), attrgetter("hi")
_MIN_STORAGES_TO_SWEEP = 1_000  # dead storages are dropped whenever the table has doubled, and not below this size


@dataclass(slots=True)
class _Span:
    lo: int
    hi: int
    producers: Producers
    patch: bool = False  # from a partial write
    reader: int = -1  # the first operation that read it


@dataclass(slots=True)
class Storage:
    """Known content of one storage.

    Attributes:
        alive: weak reference, which keeps its address from being reused.
        bytes: its size when first seen.
        model_state: whether it is a parameter's or buffer's of the model.
        external: whether it existed before the run and is not the model's.
        input: number of the operation of kind `input` for its content from before the run; -1 for none yet.
        spans: producers of each region written, in order and without overlap.
        state_ancestors: for operations in `spans`, the other operations in `spans` that they depend on through edges
            with `state`.
        passthroughs: calls that returned a tensor of this storage unchanged, in order.
    """

    alive: StorageWeakRef
    bytes: int
    model_state: bool = False
    external: bool = True
    input: int = -1
    spans: list[_Span] = field(default_factory=list)
    state_ancestors: dict[int, frozenset[int]] = field(default_factory=dict)
    passthroughs: list[Passthrough] = field(default_factory=list)


class Provenance:
    """Table of all storages seen in a run.

    Args:
        add_input: called with a tensor that is read, and its storage, which existed before the run; returns the number
            of an operation of kind `input`, or -1.
        link: called with two operations, of which the second left a part of the first one's result.
    """

    def __init__(self, add_input: Callable[[Tensor, Storage], int], link: Callable[[int, int], None]) -> None:
        self._add_input = add_input
        self._link = link
        self._storages: dict[int, Storage] = {}
        self._sweep_at = _MIN_STORAGES_TO_SWEEP

    def keep(self, tensors: Iterable[Tensor | None]) -> None:
        """Mark storages as the model's parameters and buffers, except those that operations of the run made."""
        for tensor in tensors:
            storage = None if tensor is None else self.storage(tensor)
            if storage is not None and storage.external:
                storage.model_state, storage.external = True, False

    def storage(self, tensor: Tensor) -> Storage | None:
        """Return a tensor's storage; None if it has none that is accessible, as a sparse tensor."""
        return self._storage(tensor)[0]

    def _storage(self, tensor: Tensor) -> tuple[Storage | None, bool]:
        """Return a tensor's storage and whether it is new in the table."""
        tensor = unwrap(tensor)
        try:
            untyped = tensor.untyped_storage()
            known = self._storages.get(untyped._cdata)
        except (NotImplementedError, RuntimeError, ValueError, TypeError):
            return None, False
        if known is not None:
            return known, False
        if len(self._storages) >= self._sweep_at:
            self._drop_dead_storages()
        alive = StorageWeakRef(untyped)
        storage = self._storages[alive.cdata] = Storage(alive, untyped.nbytes())
        return storage, True

    def _drop_dead_storages(self) -> None:
        self._storages = {cdata: storage for cdata, storage in self._storages.items() if not storage.alive.expired()}
        self._sweep_at = max(_MIN_STORAGES_TO_SWEEP, 2 * len(self._storages))

    def read(self, tensor: Tensor, reader: int) -> Producers:
        """Return the producers of a tensor's values, through calls that returned it unchanged.

        Args:
            tensor: the tensor.
            reader: number of the operation that reads it, or of the next one.
        """
        storage = self.storage(tensor)
        if storage is None or not tensor.numel():
            return ()
        return self._through_calls(tensor, storage, self.writers(tensor, storage, reader))

    def writers(self, tensor: Tensor, storage: Storage, reader: int) -> Producers:
        """Return the producers of a tensor's values, without calls that returned it unchanged."""
        spans = storage.spans
        if len(spans) == 1 and spans[0].lo == 0 and spans[0].hi == _END:
            if spans[0].reader < 0:
                spans[0].reader = reader
            return spans[0].producers
        if not spans and not storage.external:
            return ()
        lo, hi, _ = _region(tensor)
        first, last = _overlapping(spans, lo, hi)
        overlapping = spans[first:last]
        if len(overlapping) > 1:
            overlapping = spans[first : first + self._join(tensor, storage, first, last)]
        for span in overlapping:
            if span.reader < 0:
                span.reader = reader
        return self._producers(tensor, storage, overlapping, lo, hi)

    def _through_calls(self, tensor: Tensor, storage: Storage, producers: Producers) -> Producers:
        if not storage.passthroughs or _is_ragged(tensor):
            return producers
        return sources_of(storage.passthroughs, unwrap(tensor), producers)

    def _producers(self, tensor: Tensor, storage: Storage, overlapping: list[_Span], lo: int, hi: int) -> Producers:
        producers = dict.fromkeys(producer for span in overlapping for producer in span.producers)
        if storage.external and sum(min(hi, span.hi) - max(lo, span.lo) for span in overlapping) < hi - lo:
            number = self._add_input(tensor, storage)
            if number >= 0:
                producers[number] = None
        if len(producers) > 1 and storage.state_ancestors:
            # An edge from an operation implies those from its ancestors.
            for producer in list(producers):
                for ancestor in storage.state_ancestors.get(producer, ()):
                    producers.pop(ancestor, None)
        return tuple(producers)

    def _join(self, tensor: Tensor, storage: Storage, first: int, last: int) -> int:
        """Join the spans of a tensor that grows: read before, then written further, and now read as a whole.

        Each reader of a cache then has one edge, from the last write, and each write one from the write before; without
        this each reader would have an edge from every write.

        Returns:
            The number of spans that remain of those from `first` to before `last`.
        """
        lo, hi, _ = _region(tensor)
        spans = storage.spans
        overlapping = spans[first:last]
        newest = max((number for span in overlapping for number in span.producers), default=-1)
        grown = [
            span
            for span in overlapping
            if newest not in span.producers and span.producers and 0 <= span.reader <= newest
        ]
        if not grown:
            return last - first
        before = {number for span in grown for number in span.producers}
        known = storage.state_ancestors.get(newest, frozenset())
        for number in self._through_calls(tensor, storage, tuple(sorted(before - known))):
            self._link(number, newest)
        storage.state_ancestors[newest] = known.union(
            before, *(storage.state_ancestors.get(number, ()) for number in before)
        )
        for span in grown:
            if lo <= span.lo and span.hi <= hi:
                span.producers = (newest,)
        joined: list[_Span] = []
        for span in overlapping:
            if joined and joined[-1].hi == span.lo and joined[-1].producers == span.producers == (newest,):
                joined[-1].hi = span.hi
                joined[-1].patch |= span.patch
            else:
                joined.append(span)
        spans[first:last] = joined
        _prune(storage)
        return len(joined)

    def write(self, tensor: Tensor, number: int, rows: bool) -> Producers:
        """Record that an operation wrote a tensor.

        Args:
            tensor: the tensor.
            number: the operation.
            rows: whether it wrote only some rows of the tensor.

        Returns:
            The producers of the values that it left in the tensor's region.
        """
        storage = self.storage(tensor)
        if storage is None or not tensor.numel():
            return ()
        lo, hi, dense = _region(tensor)
        spans = storage.spans
        first, last = _overlapping(spans, lo, hi)
        before: Producers = ()
        partial = rows or not dense
        if partial:
            overlapping = spans[first:last]
            producers = self._producers(tensor, storage, overlapping, lo, hi)
            before = tuple(producer for producer in producers if producer != number)
            before = self._through_calls(tensor, storage, before)
            # Overlapping slices become one span: a cache of many slices would else fill up with small remainders.
            lo = min([lo, *(span.lo for span in overlapping if span.patch)])
            hi = max([hi, *(span.hi for span in overlapping if span.patch)])
        if lo == 0 and hi >= storage.bytes:
            hi = _END
        rest: list[_Span] = []
        for span in spans[first:last]:
            if span.lo < lo:
                rest.append(_Span(span.lo, lo, span.producers, span.patch, span.reader))
            if hi < span.hi:
                rest.append(_Span(hi, span.hi, span.producers, span.patch, span.reader))
        spans[first:last] = sorted([*rest, _Span(lo, hi, (number,), partial)], key=_lo)
        if before:
            ancestors = frozenset(before).union(*(storage.state_ancestors.get(producer, ()) for producer in before))
            storage.state_ancestors[number] = storage.state_ancestors.get(number, frozenset()) | ancestors
            _prune(storage)
        return before

    def create(self, tensor: Tensor, producers: Producers) -> bool:
        """Record that operations created a tensor, if its storage is new; return whether it is."""
        storage, new = self._storage(tensor)
        if storage is None or not new:
            return False
        storage.external = False
        storage.spans = [_Span(0, _END, producers)]
        return True


def _overlapping(spans: list[_Span], lo: int, hi: int) -> tuple[int, int]:
    return bisect_right(spans, lo, key=_hi), bisect_left(spans, hi, key=_lo)


def unwrap(tensor: Tensor) -> Tensor:
    """Return the inner tensor of a wrapper subclass such as DTensor; the tensor itself if it wraps none, or several."""
    while type(tensor) not in (Tensor, nn.Parameter) and is_traceable_wrapper_subclass(tensor):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if len(tensors) != 1:
            break
        tensor = tensors[0]
    return tensor


def _is_ragged(tensor: Tensor) -> bool:
    """Return whether sizes and strides do not locate a tensor's elements, as the rows of a nested tensor differ."""
    tensor = unwrap(tensor)
    return tensor.is_nested or is_traceable_wrapper_subclass(tensor)


def _region(tensor: Tensor) -> tuple[int, int, bool]:
    """Return a tensor's first byte in its storage, the byte after its last, and whether it has all bytes between."""
    if _is_ragged(tensor):
        return 0, _END, True
    tensor = unwrap(tensor)
    sizes, strides = tuple(tensor.shape), tensor.stride()
    elements = extent = 1
    for size, stride in zip(sizes, strides, strict=True):
        extent += (size - 1) * stride
        if stride:
            elements *= size
    offset, element_bytes = int(tensor.storage_offset()), tensor.element_size()
    return offset * element_bytes, (offset + extent) * element_bytes, elements >= extent


def _prune(storage: Storage) -> None:
    """Drop ancestors and descendants whose results are all overwritten: no later read asks for them."""
    present = {storage.input, *(number for span in storage.spans for number in span.producers)}
    storage.state_ancestors = {
        number: ancestors & present for number, ancestors in storage.state_ancestors.items() if number in present
    }
