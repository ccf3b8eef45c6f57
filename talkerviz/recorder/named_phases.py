"""Phases that the traced program names itself, in place of those that a rule tells."""

from __future__ import annotations

import threading

from talkerviz.trace.log import Mark


class NamedPhases:
    """The names that hold at present, by thread.

    A thread that names no phase has that of the thread that made this.

    Args:
        start: the mark that the rule begins with.
    """

    def __init__(self, start: Mark) -> None:
        self._thread = threading.local()
        self._latest = start
        self._first = self.names

    @property
    def names(self) -> list[str]:
        """Those that this thread is in, the innermost last; to be changed in place."""
        if not hasattr(self._thread, "names"):
            self._thread.names = []
        names: list[str] = self._thread.names
        return names

    def named(self, mark: Mark) -> Mark:
        """The rule's new mark as this thread has it: with its frame and step, but the phase that is named."""
        self._thread.latest = self._latest = mark
        # Another thread may leave its phase at this moment.
        for name in (*self.names[-1:], *self._first[-1:]):
            return mark._replace(phase=name)
        return mark

    def latest(self) -> Mark:
        """The rule's latest mark in this thread, or in any before this one has had one."""
        mark: Mark = getattr(self._thread, "latest", self._latest)
        return mark
