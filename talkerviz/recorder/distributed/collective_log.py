"""Log collectives among the calls of modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, NamedTuple

from torch import Tensor

from talkerviz.trace.event_log import COLLECTIVE, FIRST_SPECIAL_CALL, NO_TENSORS, SPECIAL_CALLS


class Begun(NamedTuple):
    """What has begun: numbers in the log, of it, its peers and its results, and its own among that of its peers."""

    what: int
    peers: int
    number: int
    results: int


class CollectiveLog:
    """A listener of `watch_collectives` that logs what it is told.

    Args:
        events: the log of calls.
        stamp: notes an edge of a call for the gauges.
        failed: the type of an exception -> -1 less its number.
        peers: where whom collectives are among is put, at the place that is its number.
        timed: whether events hold times.
    """

    def __init__(
        self,
        events: Any,
        stamp: Callable[[bool], None],
        failed: Callable[[type[BaseException]], int],
        peers: list[str],
        timed: bool,
    ) -> None:
        self._events = events
        self._stamp = stamp
        self._failed = failed
        self._kinds = {kind: FIRST_SPECIAL_CALL + place for place, kind in enumerate(SPECIAL_CALLS)}
        self._all_peers = peers
        self._now = perf_counter_ns if timed else lambda: -1
        self._peers: dict[str, int] = {}
        self._count: Counter[str] = Counter()

    def begin(self, kind: str, peers: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Begun:
        """Log that one of `SPECIAL_CALLS` begins, with its tensors."""
        results = self._events.describe_output(outputs[0] if len(outputs) == 1 else outputs)
        number = self._count[peers]
        self._count[peers] += 1
        if peers not in self._peers:
            self._all_peers.append(peers)
            self._peers[peers] = len(self._all_peers) - 1
        found = Begun(self._kinds[kind], self._peers[peers], number, results)
        self._log(found, self._events.describe(tuple(inputs), {}))
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
        self._events.put(-1 - begun.what, results, time, 0)

    def _log(self, begun: Begun, tensors: int) -> None:
        self._stamp(True)
        self._events.put(begun.what, tensors, self._now(), 0)
        self._events.put(COLLECTIVE, begun.peers, 0, begun.number)

    def hold_up(self, began: int) -> None:
        """Log that the recorder held up the thread since then: for others, who may wait for it, that is no pause."""
        what = self._kinds["recorder"]
        for beginning, event, time in ((True, what, began), (False, -1 - what, self._now())):
            self._stamp(beginning)
            self._events.put(event, NO_TENSORS, time, 0)
