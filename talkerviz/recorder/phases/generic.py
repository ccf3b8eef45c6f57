"""Phases of any model, told from what goes into each pass: how many positions, and what its cache holds."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from talkerviz.recorder.phases.requests import Request, Requests, call_site
from talkerviz.trace.event_log import Mark

# Where a pass finds what earlier ones left, and where its positions are, as transformers and most others call them.
_CACHE = re.compile(r"(?!use_)(past|past_key_values?|layer_past|mems|kv|cache|cache_params|\w+_cache)$")
_POSITIONS = ("decoder_inputs_embeds", "decoder_input_ids", "inputs_embeds", "input_ids")
_ENCODER = re.compile(r"(^|_)(encoder|tower|visual|vision_model|audio_model)$")


@dataclass(frozen=True)
class Passes:
    """The modules whose calls may be passes of their own, by path.

    Attributes:
        generators: those that have a `generate`.
        stacks: those whose `forward` takes a cache and fills it if asked to.
        encoders: those that run before what generates.
    """

    generators: frozenset[str] = frozenset()
    stacks: frozenset[str] = frozenset()
    encoders: frozenset[str] = frozenset()


def passes_of(model: nn.Module, root: str) -> Passes:
    """What is to be watched of a model; of most it is the root and one more."""
    named = [(path, module) for path, module in model.named_modules(prefix=root) if not _in_list(path)]
    takes_cache = {kind: _takes_cache(kind) for kind in {type(module) for _, module in named}}
    generators = {path for path, module in named if callable(getattr(type(module), "generate", None))}
    stacks = {path for path, module in named if takes_cache[type(module)]}
    encoders: set[str] = set()
    if generators or stacks:
        for path, _ in named:
            if _ENCODER.search(path.rpartition(".")[2]) and path != root and not _is_inside(path, encoders):
                encoders.add(path)
    return Passes(frozenset(generators), frozenset(stacks - encoders), frozenset(encoders))


class PassPhases:
    """Any model, by what goes into each pass.

    Before the first pass it is `setup` for what can generate, and `forward` for all else. Each outermost pass is a
    frame. A pass without a cache is `forward`, one that fills an empty cache `prefill`. Of those on a cache that holds
    positions `recorder.requests` tells further pieces of the prompt, which are `prefill` too, from `decode`, of one
    token or several that were guessed. A pass of several packed sequences is `mixed` where some are at their prompt
    and others are not. What an encoder does before the first pass, as an encoder-decoder's or a picture's does, is
    `encode`.

    A request begins with each prefill on an empty cache, and with each further turn of a conversation. Its frames are
    those of the passes on its cache.

    Where several modules generate one after the other, phases have their names, as in `semantic.prefill`; where one
    does between the passes of the one that it is a part of, its passes are the steps of that one's frame.
    """

    outermost = True

    def __init__(self, root: str, passes: Passes | None = None) -> None:
        self._passes = passes = passes or Passes()
        self.start = Mark("setup" if passes.generators else "forward")
        self._root = root
        self.landmarks = frozenset({root, *passes.generators, *passes.stacks, *passes.encoders})
        self._here: ContextVar[_Here] = ContextVar("pass", default=_NOWHERE)
        self._requests = Requests()
        self._frames, self._request_numbers = itertools.count(), itertools.count()

    def is_plain(self, model: nn.Module) -> bool:
        """Whether each pass is a `forward`, whatever goes into it: the model has no part that may be handed a cache."""
        if self.landmarks != {self._root} or self._passes.generators:
            return False
        try:
            parameters = inspect.signature(type(model).forward).parameters.values()
        except Exception:  # a forward that is not Python's
            return False
        return not any(
            one.kind is one.VAR_KEYWORD or one.name == "use_cache" or _CACHE.match(one.name) for one in parameters
        )

    def entered(self, path: str, arguments: Mapping[str, Any]) -> Mark | None:
        """Begin a pass."""
        here = self._here.get()
        if path in self._passes.encoders:
            return Mark("encode")
        is_part = here.owner is not None and path.startswith(f"{here.owner}.")
        kind, request = self._kind(arguments, here.parts if is_part else here.request)
        if kind == "forward" and path != self._root:
            return None  # a part that is called alone, and no pass of anything
        if is_part:
            step = 0 if kind == "prefill" else here.step + 1
            self._here.set(here._replace(step=step, parts=request))
            return Mark(f"{path.rpartition('.')[2]}.{kind}", here.frame, step, request=_number(here.request))
        if request is not None and request.number is None:
            request.number = next(self._request_numbers)
        frame = next(self._frames)
        self._here.set(_Here(path, frame, here.step, request))
        return Mark(f"{self._prefix(path)}{kind}", frame, request=_number(request))

    def left(self, path: str) -> Mark | None:
        """Begin nothing: what runs between passes belongs to the one before."""
        return None

    def _kind(self, arguments: Mapping[str, Any], last: Request | None) -> tuple[str, Request | None]:
        cache = None
        for name, value in arguments.items():
            if value is not None and _may_be_cache(name) and not isinstance(value, bool):
                cache = value
                break
        if cache is None:
            if arguments.get("use_cache") is not True:
                return "forward", None
            request = Request()
            request.begin(positions_in(arguments), 0, call_site())
            return "prefill", request
        if (packed := _packed_kind(arguments)) is not None:
            return packed, None
        kept = arguments.get("logits_to_keep")
        positions = positions_in(arguments)
        return self._requests.kind(cache, positions, kept if isinstance(kept, int) else None, last)

    def _prefix(self, path: str) -> str:
        """Nothing where there is only one that generates, else the name of the part of the root that it is in."""
        parts = {self._part(one) for one in self._passes.generators if one != self._root}
        return f"{self._part(path)}." if path != self._root and len(parts) > 1 else ""

    def _part(self, path: str) -> str:
        return path.removeprefix(f"{self._root}.").partition(".")[0]


class _Here(NamedTuple):
    """Where a thread or a task stands.

    Attributes:
        owner: whose pass the last frame is.
        frame: its number.
        step: of a part's pass in it.
        request: the request of that pass.
        parts: that of the last pass of a part.
    """

    owner: str | None = None
    frame: int = -1
    step: int = 0
    request: Request | None = None
    parts: Request | None = None


_NOWHERE = _Here()


@functools.cache
def _may_be_cache(name: str) -> bool:
    return _CACHE.match(name) is not None


def _number(request: Request | None) -> int | None:
    return None if request is None else request.number


def _packed_kind(arguments: Mapping[str, Any]) -> str | None:
    """The phase of a pass of several sequences in one row, as continuous batching makes them; None for any other."""
    bounds, longest = arguments.get("cu_seq_lens_q"), arguments.get("max_length_q")
    if not isinstance(bounds, Tensor) or not isinstance(longest, int):
        return None
    positions = positions_in(arguments)
    if longest == 1 or positions == bounds.numel() - 1:
        return "decode"
    if bounds.device.type != "cpu":  # to look at it would be to wait for the device
        return "prefill"
    lengths = bounds.diff()
    return "mixed" if bool((lengths == 1).any()) and bool((lengths > 1).any()) else "prefill"


def positions_in(arguments: Mapping[str, Any]) -> int | None:
    """How many positions of a sequence go into a pass; None if nothing tells."""
    for name in _POSITIONS:
        if isinstance(value := arguments.get(name), Tensor):
            return _positions_of(value)
    return next((_positions_of(value) for value in arguments.values() if isinstance(value, Tensor)), None)


def _positions_of(value: Tensor) -> int:
    shape = value.shape
    if len(shape) == 2 and value.is_floating_point():  # positions and features, of a single row
        return int(shape[0])
    return int(shape[1] if len(shape) > 1 else value.numel())


def _takes_cache(kind: type[nn.Module]) -> bool:
    try:
        names = inspect.signature(kind.forward).parameters
    except Exception:  # a forward that is not Python's; a scripted one raises whatever it likes
        return False
    return "use_cache" in names and any(_CACHE.match(name) for name in names)


def _in_list(path: str) -> bool:
    # Layers take caches as well, but no layer is called alone.
    return path.rpartition(".")[2].isdigit()


def _is_inside(path: str, others: set[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)
