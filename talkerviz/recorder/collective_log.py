"""Log collectives among the calls of modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import perf_counter_ns
from typing import NamedTuple

from torch import Tensor

from talkerviz.recorder.tensors import Signatures
from talkerviz.trace.log import BESIDES, COLLECTIVE, NO_TENSORS, Names


class Begun(NamedTuple):
    """What has begun: numbers in the log, of it, its peers and its results, and its own among that of its peers."""

    what: int
    peers: int
    number: int
    results: int


class CollectiveLog:
    """A listener of `watch_collectives` that logs what it is told.

    Args:
        put: adds an event to the log of the calling thread.
        stamp: notes an edge of a call for the gauges.
        failed: the type of an exception -> -1 less its number.
        first: the number of the first of `BESIDES`.
        names: the log's.
        signatures: gives tensors' lists their numbers.
        timed: whether events hold times.
    """

    def __init__(
        self,
        put: Callable[[int, int, int], None],
        stamp: Callable[[bool], None],
        failed: Callable[[type[BaseException]], int],
        first: int,
        names: Names,
        signatures: Signatures,
        timed: bool,
    ) -> None:
        self._put = put
        self._stamp = stamp
        self._failed = failed
        self._kinds = {kind: first + place for place, kind in enumerate(BESIDES)}
        self._names = names
        self._signatures = signatures
        self._now = perf_counter_ns if timed else lambda: -1
        self._peers: dict[str, int] = {}
        self._count: Counter[str] = Counter()

    def begin(self, kind: str, peers: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Begun:
        """Log that one of `BESIDES` begins, with its tensors."""
        results = self._signatures.of_output(outputs[0] if len(outputs) == 1 else outputs)
        number = self._count[peers]
        self._count[peers] += 1
        if peers not in self._peers:
            self._names.peers.append(peers)
            self._peers[peers] = len(self._names.peers) - 1
        found = Begun(self._kinds[kind], self._peers[peers], number, results)
        self._log(found, self._signatures.of_inputs(inputs, {}))
        return found

    def wait(self, begun: Begun) -> Begun:
        """Log that a wait begins for what was begun before."""
        found = begun._replace(what=self._kinds["wait"])
        self._log(found, NO_TENSORS)
        return found

    def end(self, begun: Begun, error: type[BaseException] | None, done: bool) -> None:
        """Log that it is over; what it gives is there if it is `done`, or else where one has waited for it."""
        time = self._now()
        self._stamp(False)
        results = self._failed(error) if error is not None else begun.results if done else NO_TENSORS
        self._put(-1 - begun.what, results, time)

    def _log(self, begun: Begun, tensors: int) -> None:
        self._stamp(True)
        self._put(begun.what, tensors, self._now())
        self._put(COLLECTIVE, begun.peers, begun.number)

    def hold_up(self, began: int) -> None:
        """Log that the recorder held up the thread since then: for others, who may wait for it, that is no pause."""
        what = self._kinds["recorder"]
        for beginning, event, time in ((True, what, began), (False, -1 - what, self._now())):
            self._stamp(beginning)
            self._put(event, NO_TENSORS, time)
