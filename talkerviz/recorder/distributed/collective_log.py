"""Log of collectives, as rows among the calls of modules."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, NamedTuple

from torch import Tensor

from talkerviz.trace.event_log import COLLECTIVE, FIRST_SPECIAL_CALL, NO_TENSORS, SPECIAL_CALLS


class OpenCollective(NamedTuple):
    """A collective that has begun.

    Attributes:
        event: number of its kind among events.
        peers: number of its ranks in `Names.peers`.
        number: its number among the collectives of its group, equal on all ranks.
        results: number of its results' description.
    """

    event: int
    peers: int
    number: int
    results: int


class CollectiveLog:
    """Listener of `watch_collectives` that logs collectives.

    Args:
        events: the log of calls.
        stamp: samples the instruments at the entry or exit of a collective.
        error_number: type of an exception -> -1 less its number.
        peers: ranks of collectives, by number; new ones are appended.
        timed: whether events hold times; -1 otherwise.
    """

    def __init__(
        self,
        events: Any,
        stamp: Callable[[bool], None],
        error_number: Callable[[type[BaseException]], int],
        peers: list[str],
        timed: bool,
    ) -> None:
        self._events = events
        self._stamp = stamp
        self._error_number = error_number
        self._kinds = {kind: FIRST_SPECIAL_CALL + index for index, kind in enumerate(SPECIAL_CALLS)}
        self._all_peers = peers
        self._now = perf_counter_ns if timed else lambda: -1
        self._peers: dict[str, int] = {}
        self._next: dict[str, int] = {}  # number of the next collective of each group

    def begin(
        self,
        kind: str,
        peers: str,
        begun: Callable[[], int],
        inputs: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
    ) -> OpenCollective:
        """Log that a collective begins, with its tensors; `kind` is one of `SPECIAL_CALLS`."""
        results = self._events.describe_output(outputs[0] if len(outputs) == 1 else outputs)
        if peers not in self._peers:
            self._all_peers.append(peers)
            self._peers[peers] = len(self._all_peers) - 1
            self._next[peers] = begun()
        number = self._next[peers]
        self._next[peers] = number + 1
        collective = OpenCollective(self._kinds[kind], self._peers[peers], number, results)
        self._log(collective, self._events.describe(tuple(inputs), {}))
        return collective

    def wait(self, collective: OpenCollective) -> OpenCollective:
        """Log that a wait for a collective begins."""
        waiting = collective._replace(event=self._kinds["wait"])
        self._log(waiting, NO_TENSORS)
        return waiting

    def end(self, collective: OpenCollective, error: type[BaseException] | None, done: bool) -> None:
        """Log that a collective or wait is over, with its results if it is `done`; else a wait will have them."""
        time = self._now()
        self._stamp(False)
        results = self._error_number(error) if error is not None else collective.results if done else NO_TENSORS
        self._events.put(-1 - collective.event, results, time, 0)

    def _log(self, collective: OpenCollective, tensors: int) -> None:
        self._stamp(True)
        self._events.put(collective.event, tensors, self._now(), 0)
        self._events.put(COLLECTIVE, collective.peers, 0, collective.number)

    def log_pause(self, began: int) -> None:
        """Log that the recorder held up this thread since `began`: other ranks may have waited for it meanwhile."""
        kind = self._kinds["recorder"]
        for entry, event, time in ((True, kind, began), (False, -1 - kind, self._now())):
            self._stamp(entry)
            self._events.put(event, NO_TENSORS, time, 0)
