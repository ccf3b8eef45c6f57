"""Phases of any model, told from what goes into each pass: how many positions, and what its cache holds."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from talkerviz.trace.log import Mark

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

    Before the first pass it is `setup` for what can generate, and `forward` for all else. A pass that fills an empty
    cache is `prefill`, as is one of several positions; one of a single position, on a cache that holds others, is
    `decode`. Without a cache a pass is `forward`. Each outermost pass is a frame. What an encoder does before the first
    of them, as an encoder-decoder's or a picture's does, is `encode`.

    Where several modules generate one after the other, phases have their names, as in `semantic.prefill`; where one
    does between the passes of the one that it is a part of, its passes are the steps of that one's frame.
    """

    def __init__(self, root: str, passes: Passes | None = None) -> None:
        self._passes = passes = passes or Passes()
        self.start = Mark("setup" if passes.generators else "forward")
        self._root = root
        self.landmarks = frozenset({root, *passes.generators, *passes.stacks, *passes.encoders})
        self._thread = threading.local()
        self._seen: set[str] = set()
        self._frames = 0
        self._step = 0
        self._owner: str | None = None  # whose pass the frame is

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
        """A pass begins, unless it is inside of another."""
        depth = getattr(self._thread, "depth", 0)
        self._thread.depth = depth + 1
        if depth:
            return None
        if path in self._passes.encoders:
            return Mark("encode")
        kind = self._kind(path, arguments)
        if kind == "forward" and path != self._root:
            return None  # a part that is called alone, and no pass of anything
        if self._owner is not None and path.startswith(f"{self._owner}."):
            self._step = 0 if kind == "prefill" else self._step + 1
            return Mark(f"{path.rpartition('.')[2]}.{kind}", self._frames - 1, self._step)
        self._owner = path
        self._frames += 1
        return Mark(f"{self._prefix(path)}{kind}", self._frames - 1)

    def left(self, path: str) -> Mark | None:
        """What runs between passes belongs to the one before."""
        self._thread.depth -= 1
        return None

    def _kind(self, path: str, arguments: Mapping[str, Any]) -> str:
        caches = [value for name, value in arguments.items() if _CACHE.match(name) and not isinstance(value, bool)]
        cache = next((cache for cache in caches if cache is not None), None)
        if cache is None:
            return "prefill" if arguments.get("use_cache") is True else "forward"
        filled = is_filled(cache)
        filled = path in self._seen if filled is None else filled
        self._seen.add(path)
        return "decode" if filled and positions_in(arguments) == 1 else "prefill"

    def _prefix(self, path: str) -> str:
        """Nothing where there is only one that generates, else the name of the part of the root that it is in."""
        parts = {self._part(one) for one in self._passes.generators if one != self._root}
        return f"{self._part(path)}." if path != self._root and len(parts) > 1 else ""

    def _part(self, path: str) -> str:
        return path.removeprefix(f"{self._root}.").partition(".")[0]


def positions_in(arguments: Mapping[str, Any]) -> int | None:
    """How many positions of a sequence go into a pass; None if nothing tells."""
    named = [arguments[name] for name in _POSITIONS if isinstance(arguments.get(name), Tensor)]
    first = next(iter([*named, *(value for value in arguments.values() if isinstance(value, Tensor))]), None)
    if first is None:
        return None
    return int(first.shape[1] if first.ndim > 1 else first.numel())


def is_filled(cache: Any) -> bool | None:
    """Whether a cache holds anything; None if it does not tell, or only at the price of waiting for a device."""
    for name in ("get_seq_length", "has_previous_state"):
        tell = getattr(cache, name, None)
        try:
            told = tell() if callable(tell) else tell
        except Exception:  # transformers' caches of layers without attention have no length, and others no state
            continue
        if isinstance(told, (bool, int)):
            return bool(told)
    if isinstance(cache, (list, tuple)) and all(one is None for one in cache):
        return False
    return None


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
