"""Generic phase rule: phases of any model, by the positions that go into each pass and the content of its cache."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor, nn

from talkerviz.recorder.phases.requests import Request, Requests, call_site
from talkerviz.trace.event_log import Mark

# Names of arguments that hold a cache, and positions, in transformers and most other libraries.
_CACHE = re.compile(r"(?!use_)(past|past_key_values?|layer_past|mems|kv|cache|cache_params|\w+_cache)$")
_POSITIONS = ("decoder_inputs_embeds", "decoder_input_ids", "inputs_embeds", "input_ids")
_ENCODER = re.compile(r"(^|_)(encoder|tower|visual|vision_model|audio_model)$")
# Names of parts that turn codes or spectrograms to sound and have no `encode`.
_VOCODER = re.compile(r"(^|_)vocoder$|2wav$")

_STACK_FRAMES = 24
"""Stack frames searched for the method that calls a module: the recorder's, torch's, and those of wrappers."""


@dataclass(frozen=True)
class Passes:
    """Paths of the modules whose calls may be passes of their own.

    Attributes:
        generators: modules that have a `generate` method.
        stacks: modules whose `forward` takes a cache and has `use_cache`.
        encoders: modules that run before the generator.
        codecs: modules between codes and sound, or pictures: those with `encode` and `decode`, and vocoders.
        uncached: generators whose passes take no cache, such as those that predict all positions at once.
        inner: modules inside codecs and uncached generators, by path, with the path of the outer one. They are called
            outside any pass where a method of the outer one, such as `decode`, is called in place of the module.
    """

    generators: frozenset[str] = frozenset()
    stacks: frozenset[str] = frozenset()
    encoders: frozenset[str] = frozenset()
    codecs: frozenset[str] = frozenset()
    uncached: frozenset[str] = frozenset()
    inner: Mapping[str, str] = field(default_factory=dict)


def passes_of(model: nn.Module, root: str) -> Passes:
    """Return the passes of a model; most have the root and one more."""
    named = [(path, module) for path, module in model.named_modules(prefix=root) if not _in_list(path)]
    takes_cache = {kind: _takes_cache(kind) for kind in {type(module) for _, module in named}}
    generators = {path for path, module in named if callable(getattr(type(module), "generate", None))}
    stacks = {path for path, module in named if takes_cache[type(module)]}
    if not (generators or stacks):
        return Passes()
    encoders, codecs = set[str](), set[str]()
    for path, module in named:
        name = path.rpartition(".")[2]
        if path == root or _is_inside(path, encoders) or _is_inside(path, codecs):
            continue
        if path not in generators and (_has_methods(module, "encode", "decode") or _VOCODER.search(name)):
            codecs.add(path)
        elif _ENCODER.search(name):
            encoders.add(path)
    # A codec may have stacks for streaming; no pass of them is a frame. If it has every stack, it is the model itself.
    outside = {path for path in stacks if path not in codecs and not _is_inside(path, codecs)}
    if outside or not stacks:
        stacks, generators = outside, {path for path in generators if not _is_inside(path, codecs)}
    else:
        codecs = set()
    uncached = {path for path in generators - stacks - {root} if not _has_stack(path, stacks)}
    paths = [path for path, _ in model.named_modules(prefix=root)]
    inner = {path: outer for outer in codecs | uncached for path in _inside(outer, paths)}
    return Passes(
        frozenset(generators),
        frozenset(stacks - encoders),
        frozenset(encoders),
        frozenset(codecs),
        frozenset(uncached),
        inner,
    )


class PassPhases:
    """Phase rule of any model, by the arguments of each pass.

    Before the first pass the phase is `setup` for a model that can generate, and `forward` for any other. Each
    outermost pass is a frame. A pass without a cache is `forward`, one that fills an empty cache `prefill`. A pass on a
    cache that holds positions is a further piece of the prompt, which is `prefill` too, or `decode`, of one token or
    of several draft tokens: see `phases.requests`. A pass of several packed sequences is `mixed` if some are at their
    prompt and others are not. Calls of an encoder before the first pass, such as that of an encoder-decoder model or an
    image encoder, are `encode`.

    A request begins with each prefill on an empty cache, and with each further turn of a conversation. Its frames are
    the passes on its cache.

    Calls of a codec outside any pass are `encode` inside its `encode`, and `codec` otherwise; they are of no frame.

    If several modules generate one after the other, phases have their names, as in `semantic.prefill`; if a module
    generates between the passes of the module that contains it, its passes are the steps of that module's frame. A
    module that generates without a cache has the phase `forward`.

    Args:
        root: path of the model.
        passes: the modules whose calls may be passes; by default the root alone.

    Attributes:
        passes: the modules whose calls may be passes.
    """

    outermost = True

    def __init__(self, root: str, passes: Passes | None = None) -> None:
        self.passes = passes = passes or Passes()
        self.start = Mark("setup" if passes.generators else "forward")
        self._root = root
        self.landmarks = frozenset(
            {root, *passes.generators, *passes.stacks, *passes.encoders, *passes.codecs, *passes.inner}
        )
        self._state: ContextVar[_State] = ContextVar("pass", default=_NO_PASS)
        self._requests = Requests()
        self._frames, self._request_numbers = itertools.count(), itertools.count()

    def is_plain(self, model: nn.Module) -> bool:
        """Return whether each pass is `forward` whatever its arguments: no part of the model takes a cache."""
        if self.landmarks != {self._root} or self.passes.generators:
            return False
        try:
            parameters = inspect.signature(type(model).forward).parameters.values()
        except Exception:  # a forward that is not Python's
            return False
        return not any(
            parameter.kind is parameter.VAR_KEYWORD or parameter.name == "use_cache" or _CACHE.match(parameter.name)
            for parameter in parameters
        )

    def entered(self, path: str, arguments: Mapping[str, Any]) -> Mark | None:
        """Begin a pass."""
        state = self._state.get()
        if path in self.passes.encoders:
            return Mark("encode")
        outer = self.passes.inner.get(path, path)
        if outer in self.passes.codecs:
            method = _calling_method("encode", "decode")
            encodes = method == "encode" or (method is None and _ENCODER.search(outer.rpartition(".")[2]))
            return Mark("encode" if encodes else "codec", request=_number(state.request))
        is_part = state.owner is not None and outer.startswith(f"{state.owner}.")
        if outer in self.passes.uncached:
            if path != outer and not self._begins_pass(path, outer, state):
                return None
            kind, request = "forward", None
        else:
            kind, request = self._kind(arguments, state.part_request if is_part else state.request)
            if kind == "forward" and path != self._root:
                return None  # a part that is called alone, outside any pass
        first = (outer, path)
        if is_part:
            step = 0 if kind == "prefill" or state.first[0] == state.owner else state.step + 1
            self._state.set(state._replace(step=step, part_request=request, first=first))
            return Mark(f"{outer.rpartition('.')[2]}.{kind}", state.frame, step, request=_number(state.request))
        if request is not None and request.number is None:
            request.number = next(self._request_numbers)
        frame = next(self._frames)
        self._state.set(_State(outer, frame, state.step, request, first=first))
        return Mark(f"{self._prefix(outer)}{kind}", frame, request=_number(request))

    def _begins_pass(self, path: str, outer: str, state: _State) -> bool:
        """Return whether a part of a generator without a cache begins a pass.

        Some call `self.forward(...)`, so that no call of the module is seen: such a pass begins with its first part.
        """
        is_further = state.first[0] == outer and path != state.first[1]
        return not is_further and _calling_method("forward", "generate") == "forward"

    def left(self, path: str) -> Mark | None:
        """Begin nothing: calls between passes belong to the pass before."""
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
        """Return the name of the part of the root that a pass is in, with a dot; empty if only one part generates."""
        parts = {self._part(generator) for generator in self.passes.generators if generator != self._root}
        return f"{self._part(path)}." if path != self._root and len(parts) > 1 else ""

    def _part(self, path: str) -> str:
        return path.removeprefix(f"{self._root}.").partition(".")[0]


class _State(NamedTuple):
    """Last pass of a thread or a task.

    Attributes:
        owner: path of the module whose pass the last frame is; None before the first.
        frame: number of the frame.
        step: number of the last step, a part's pass, in the frame.
        request: request of the frame.
        part_request: request of the last step.
        first: path of the module of the last pass, and of the module whose call began it: the same, or its first part.
    """

    owner: str | None = None
    frame: int = -1
    step: int = 0
    request: Request | None = None
    part_request: Request | None = None
    first: tuple[str, str] = ("", "")


_NO_PASS = _State()


@functools.cache
def _may_be_cache(name: str) -> bool:
    return _CACHE.match(name) is not None


def _number(request: Request | None) -> int | None:
    return None if request is None else request.number


def _packed_kind(arguments: Mapping[str, Any]) -> str | None:
    """Return the phase of a pass of several sequences packed in one row by continuous batching; None for any other."""
    bounds, longest = arguments.get("cu_seq_lens_q"), arguments.get("max_length_q")
    if not isinstance(bounds, Tensor) or not isinstance(longest, int):
        return None
    positions = positions_in(arguments)
    if longest == 1 or positions == bounds.numel() - 1:
        return "decode"
    if bounds.device.type != "cpu":  # reading it would wait for the device
        return "prefill"
    lengths = bounds.diff()
    return "mixed" if bool((lengths == 1).any()) and bool((lengths > 1).any()) else "prefill"


def positions_in(arguments: Mapping[str, Any]) -> int | None:
    """Return the number of positions that go into a pass; None if no argument is a tensor."""
    for name in _POSITIONS:
        if isinstance(value := arguments.get(name), Tensor):
            return _positions_of(value)
    return next((_positions_of(value) for value in arguments.values() if isinstance(value, Tensor)), None)


def _positions_of(value: Tensor) -> int:
    shape = value.shape
    if len(shape) == 2 and value.is_floating_point():  # [positions, features], of a single row
        return int(shape[0])
    return int(shape[1] if len(shape) > 1 else value.numel())


def _takes_cache(kind: type[nn.Module]) -> bool:
    try:
        names = inspect.signature(kind.forward).parameters
    except Exception:  # a forward that is not Python's; a scripted one raises any exception
        return False
    return "use_cache" in names and any(_CACHE.match(name) for name in names)


def _has_methods(module: nn.Module, *names: str) -> bool:
    return all(callable(getattr(type(module), name, None)) for name in names)


def _calling_method(*names: str) -> str | None:
    """Return which of these methods, or of their helpers such as `_encode_frame`, is the innermost on the stack."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_STACK_FRAMES):
        if frame is None:
            break
        method = frame.f_code.co_name.lstrip("_")
        for name in names:
            if method == name or method.startswith(f"{name}_"):
                return name
        frame = frame.f_back
    return None


def _has_stack(path: str, stacks: Iterable[str]) -> bool:
    # Attention modules in a list of layers take caches as well.
    below = (stack.removeprefix(path).split(".") for stack in _inside(path, stacks))
    return any(not any(map(str.isdigit, names)) for names in below)


def _inside(path: str, others: Iterable[str]) -> Iterator[str]:
    """Yield the paths that are below a path."""
    return (other for other in others if other.startswith(f"{path}."))


def _in_list(path: str) -> bool:
    # Layers take caches as well, but no layer is called by itself.
    return path.rpartition(".")[2].isdigit()


def _is_inside(path: str, others: set[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)
