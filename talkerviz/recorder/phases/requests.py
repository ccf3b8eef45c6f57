"""Requests by their KV caches: prefill and decode passes told apart."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from torch import Tensor

Site = tuple[tuple[CodeType, int], ...]
"""Call site of a pass in the program: code and instruction of each stack frame, innermost first."""

_SITE_FRAMES = 6  # enough to tell a helper's callers apart


@dataclass(eq=False)
class Request:
    """The passes on one cache, from the one that fills it on.

    Attributes:
        number: number of the request, set by the phase rule.
        decoded: whether a pass was `decode`.
        cropped: whether the cache has lost positions: draft tokens were rejected.
        length: positions in the cache after the last pass; None if the cache does not report it.
        piece: positions of the first pass: all pieces of a chunked prompt but the last have as many.
        pieces: number of passes that were pieces of the prompt.
        whole: whether the prompt is complete: a shorter piece was its last.
        first: call site of the first pass.
        sites: phases of later passes, by call site.
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
        """Note a pass that fills an empty cache, or begins a further turn."""
        self.piece, self.pieces, self.first = positions, 1, site
        self._set_length(positions, length)

    def next_pass(self, positions: int | None, kept: int | None, length: int | None) -> str:
        """Return `prefill` or `decode` for a pass on a cache that is not empty.

        Args:
            positions: positions that go in; None if unknown.
            kept: number of positions whose logits are asked for (`logits_to_keep`); None if not given.
            length: positions in the cache; None if it does not report it.
        """
        if length is not None and self.length is not None and length < self.length:
            self.cropped = True
        kind = self._single_position() if positions == 1 else self._several_positions(positions, kept)
        if kind == "decode":
            self.decoded = True
        else:
            self.pieces += 1
        self._set_length(positions, length)
        return kind

    def _set_length(self, positions: int | None, length: int | None) -> None:
        self.length = None if positions is None or length is None else length + positions

    def _single_position(self) -> str:
        if self.decoded:
            return "decode"
        site = call_site()
        if self.pieces > 1 and not self.whole and site == self.first:
            self.whole = True
            return "prefill"  # a prompt of 9 in pieces of 4 ends with one of 1
        self.sites[site] = "decode"
        return "decode"

    def _several_positions(self, positions: int | None, kept: int | None) -> str:
        """Tell pieces of a prompt and further turns of a conversation from draft tokens that are verified at once.

        Verification takes the logits of each token, and rejected ones are cropped from the cache. If neither decides, a
        prompt goes in at one call site of the program, and in pieces of one size.
        """
        if kept is not None and kept > 0:
            # A draft model takes the token that replaced the rejected ones, with the one before it.
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
            # The first piece may have a call site of its own, or the last.
            is_piece = positions == self.piece or (self.pieces > 1 and positions <= (self.piece or 0))
            kind = "prefill" if is_piece else "decode"
        self.sites[site] = kind
        return kind


_UNKNOWN = (lambda: None, None)


class Requests:
    """Requests by the caches of their passes; the caches are not kept alive."""

    def __init__(self) -> None:
        self._by_cache: dict[int, tuple[weakref.ref[Any], Request]] = {}

    def kind(self, cache: Any, positions: int | None, kept: int | None, last: Request | None) -> tuple[str, Request]:
        """Return `prefill` or `decode` for a pass, and its request.

        Args:
            cache: the cache argument.
            positions: positions that go in; None if unknown.
            kept: number of positions whose logits are asked for; None if not given.
            last: the request of the pass before.
        """
        # A cache of tensors is another tensor, or tuple of them, after each pass.
        is_value = isinstance(cache, (Tensor, tuple, list))
        request = known = last if is_value else self._known(cache)
        length, holds = held_in(cache)
        if holds is None:
            holds = request is not None
        if not holds:
            request = None
        elif request is None and last is not None and not self._has_cache(last):
            request = last  # its first pass created the cache
        if request is not None:
            kind = request.next_pass(positions, kept, length)
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
        reference, request = self._by_cache.get(id(cache), _UNKNOWN)
        return request if reference() is cache else None

    def _has_cache(self, request: Request) -> bool:
        return any(known is request and reference() is not None for reference, known in list(self._by_cache.values()))

    def _remember(self, cache: Any, request: Request) -> None:
        key, by_cache = id(cache), self._by_cache
        try:
            reference = weakref.ref(cache, lambda _: by_cache.pop(key, None))
        except TypeError:  # a class with slots
            return
        by_cache[key] = reference, request


def held_in(cache: Any) -> tuple[int | None, bool | None]:
    """Return the number of positions in a cache, and whether it holds any.

    Each is None if the cache does not report it, or only at the price of waiting for a device.
    """
    length = _ask(cache, "get_seq_length")
    if isinstance(length, int):
        return length, length > 0
    has_state = _ask(cache, "has_previous_state")
    if isinstance(has_state, (bool, int)):
        return None, bool(has_state)
    if isinstance(cache, (list, tuple)):
        layers = (isinstance(layer, Tensor) or (isinstance(layer, (list, tuple)) and len(layer) > 0) for layer in cache)
        return None, any(layers)
    return None, isinstance(cache, Tensor) or None


def _ask(cache: Any, name: str) -> Any:
    attribute = getattr(cache, name, None)
    try:
        return attribute() if callable(attribute) else attribute
    except Exception:  # transformers' caches of layers without attention have no length, and others no state
        return None


def call_site() -> Site:
    """Return the call site of a pass in the program, without frames of torch and of the recorder."""
    site: list[tuple[CodeType, int]] = []
    frame = sys._getframe(1)
    while frame is not None and len(site) < _SITE_FRAMES:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("torch", "talkerviz"):
            site.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(site)
