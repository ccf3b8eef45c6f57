"""Requests told by their caches: which pass is a piece of the prompt, and which decodes."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from torch import Tensor

Site = tuple[tuple[CodeType, int], ...]
"""Where in a program a pass is called: the code and the instruction of each frame, innermost first."""

_SITE_FRAMES = 6  # enough to tell a helper's callers apart


@dataclass(eq=False)
class Request:
    """The passes on one cache, from the one that fills it on.

    Attributes:
        number: given by whoever counts requests.
        decoded: whether a pass has decoded.
        cropped: whether the cache has lost positions since: guessed tokens were refused.
        length: positions that the cache holds after the last pass; None where it does not tell.
        piece: positions of the first pass: all pieces of a prompt but the last have as many.
        pieces: passes that were pieces of the prompt.
        whole: whether a shorter piece has come: it is the prompt's last.
        first: where the first pass was called.
        sites: where later ones were, and what they were.
    """

    number: int | None = None
    decoded: bool = False
    cropped: bool = False
    length: int | None = None
    piece: int | None = None
    pieces: int = 0
    whole: bool = False
    first: Site = ()
    sites: dict[Site, str] = field(default_factory=dict)

    def begin(self, positions: int | None, length: int | None, site: Site) -> None:
        """A pass fills an empty cache, or begins a further turn."""
        self.piece, self.pieces, self.first = positions, 1, site
        self._put_in(positions, length)

    def go_on(self, positions: int | None, kept: int | None, length: int | None) -> str:
        """`prefill` or `decode`, for a pass on a cache that holds something.

        Args:
            positions: how many go in; None if nothing tells.
            kept: of how many of them the pass is to give logits; None where it is not told.
            length: how many the cache holds; None where it does not tell.
        """
        if length is not None and self.length is not None and length < self.length:
            self.cropped = True
        kind = self._kind_of_one() if positions == 1 else self._kind_of_several(positions, kept)
        if kind == "decode":
            self.decoded = True
        else:
            self.pieces += 1
        self._put_in(positions, length)
        return kind

    def _put_in(self, positions: int | None, length: int | None) -> None:
        self.length = None if positions is None or length is None else length + positions

    def _kind_of_one(self) -> str:
        if self.decoded:
            return "decode"
        site = call_site()
        if self.pieces > 1 and not self.whole and site == self.first:
            self.whole = True
            return "prefill"  # a prompt of 9 in pieces of 4 ends with one of 1
        self.sites[site] = "decode"
        return "decode"

    def _kind_of_several(self, positions: int | None, kept: int | None) -> str:
        """Pieces of a prompt and further turns of a conversation, or tokens that were guessed and are checked at once.

        To check them takes the logits of each; what is refused is cropped from the cache. Where neither tells, a prompt
        is put in at one place of the program, and in pieces of one size.
        """
        if kept is not None and kept > 0:
            # A draft model puts in the token that was taken in place of those refused, with the one before it.
            catches_up = self.cropped and positions == 2
            return "decode" if kept == positions or catches_up else "prefill"
        if self.cropped or positions is None:
            return "decode" if self.cropped else "prefill"
        site = call_site()
        known = self.sites.get(site)
        if known is not None:
            return known
        if self.decoded:
            kind = "prefill" if site[:1] == self.first[:1] else "decode"
        elif site == self.first:
            kind = "prefill" if not self.whole and positions <= (self.piece or 0) else "decode"
            self.whole = positions < (self.piece or 0)
            if kind == "prefill":
                return kind
        else:
            # The first piece may be put in at a place of its own, or the last.
            is_piece = positions == self.piece or (self.pieces > 1 and positions <= (self.piece or 0))
            kind = "prefill" if is_piece else "decode"
        self.sites[site] = kind
        return kind


_UNKNOWN = (lambda: None, None)


class Requests:
    """Requests by the caches of their passes, which are not kept alive."""

    def __init__(self) -> None:
        self._of_cache: dict[int, tuple[weakref.ref[Any], Request]] = {}

    def kind(self, cache: Any, positions: int | None, kept: int | None, last: Request | None) -> tuple[str, Request]:
        """`prefill` or `decode` for a pass, and its request.

        Args:
            cache: what it is handed.
            positions: how many positions go in.
            kept: of how many of them it is to give logits; None where it is not told.
            last: the request of the pass before.
        """
        # Each pass makes another tensor, or tuple of them, of the one before.
        is_value = isinstance(cache, (Tensor, tuple, list))
        request = known = last if is_value else self._known(cache)
        length, holds = held_in(cache)
        if holds is None:
            holds = request is not None
        if not holds:
            request = None
        elif request is None and last is not None and not self._has_cache(last):
            request = last  # its first pass made the cache
        if request is not None:
            kind = request.go_on(positions, kept, length)
            turn = kind == "prefill" and request.decoded
        else:
            kind, turn = ("decode", False) if holds and positions == 1 else ("prefill", True)
            request = Request(decoded=kind == "decode")
        if turn:
            request = Request()
            request.begin(positions, length, call_site())
        if not is_value and request is not known:
            self._remember(cache, request)
        return kind, request

    def _known(self, cache: Any) -> Request | None:
        reference, request = self._of_cache.get(id(cache), _UNKNOWN)
        return request if reference() is cache else None

    def _has_cache(self, request: Request) -> bool:
        return any(of is request and reference() is not None for reference, of in list(self._of_cache.values()))

    def _remember(self, cache: Any, request: Request) -> None:
        place, of_cache = id(cache), self._of_cache
        try:
            reference = weakref.ref(cache, lambda _: of_cache.pop(place, None))
        except TypeError:  # of a class with slots
            return
        of_cache[place] = reference, request


def held_in(cache: Any) -> tuple[int | None, bool | None]:
    """How many positions a cache holds, and whether it holds anything; None for what it does not tell, or only at the
    price of waiting for a device."""
    told = _told(cache, "get_seq_length")
    if isinstance(told, int):
        return told, told > 0
    told = _told(cache, "has_previous_state")
    if isinstance(told, (bool, int)):
        return None, bool(told)
    if isinstance(cache, (list, tuple)):
        parts = (isinstance(one, Tensor) or (isinstance(one, (list, tuple)) and len(one) > 0) for one in cache)
        return None, any(parts)
    return None, isinstance(cache, Tensor) or None


def _told(cache: Any, name: str) -> Any:
    tell = getattr(cache, name, None)
    try:
        return tell() if callable(tell) else tell
    except Exception:  # transformers' caches of layers without attention have no length, and others no state
        return None


def call_site() -> Site:
    """Where the program calls a pass, without frames of torch and of the recorder."""
    found: list[tuple[CodeType, int]] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < _SITE_FRAMES:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("torch", "talkerviz"):
            found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)
