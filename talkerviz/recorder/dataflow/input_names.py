"""Names for a run's input tensors: set by the caller, or those of `forward`'s parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

_NAMES: ContextVar[Mapping[str, Tensor]] = ContextVar("input_names", default={})  # noqa: B039  (it is never changed)


@contextmanager
def name_inputs(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Name the input tensors of runs inside the block.

    Args:
        arguments: values by name; those that are no tensors are ignored.
    """
    token = _NAMES.set({name: value for name, value in arguments.items() if isinstance(value, Tensor)})
    try:
        yield
    finally:
        _NAMES.reset(token)


def named_inputs() -> Mapping[str, Tensor]:
    """Return the tensors that the current run's caller has named."""
    return _NAMES.get()


def named_arguments(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Iterate over the arguments of a module's call with the names of its `forward`'s parameters."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    further = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), "input")
    for index, value in enumerate(args):
        yield names[index] if index < len(names) else further, value
    yield from kwargs.items()
