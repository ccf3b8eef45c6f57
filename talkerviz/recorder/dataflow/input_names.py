"""What the tensors that a run is given are called, for runs that know it: who reads them first may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

_GIVEN: ContextVar[Mapping[str, Tensor]] = ContextVar("given", default={})  # noqa: B039  (nothing is put in it)


@contextmanager
def naming(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block, tensors from outside that are among these arguments are called by their names."""
    token = _GIVEN.set({name: value for name, value in arguments.items() if isinstance(value, Tensor)})
    try:
        yield
    finally:
        _GIVEN.reset(token)


def given_arguments() -> Mapping[str, Tensor]:
    """The tensors that the run at hand is given."""
    return _GIVEN.get()
