"""Names of models found in a running program: by the variable or attribute that holds them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

_OURS = ("talkerviz.recorder", "talkerviz.cli", "talkerviz.targets")
"""Packages whose frames are the recorder's, and not the program's."""
_MAX_ITEMS = 1_000  # entries searched of a list or dict; longer ones hold data and no models


class _Scope(NamedTuple):
    """Variables of a running function.

    Attributes:
        first: its first argument, the object of a method; None if it has none.
        variables: its local variables, then the global ones.
    """

    first: Any
    variables: tuple[dict[str, Any], dict[str, Any]]


def name_of_root(module: nn.Module) -> str:
    """Return a path for a module that the program is calling: `net`, or `net.decoder` for a part that is called alone.

    The program's variables are searched from its outermost function inwards, then attributes of the objects whose
    methods are running, then other objects, lists and dicts. A module that is called by a method of a module around it
    is named as its part. Where nothing holds the module, the name is its class.

    Args:
        module: the module that is about to be called on this thread.
    """
    scopes = list(_program_scopes())
    owner, inner = _owner(module, scopes)
    name = _variable(owner, scopes) or _attribute(owner, scopes) or type(owner).__name__
    return f"{name}.{inner}" if inner else name


def _program_scopes() -> Iterator[_Scope]:
    """Yield the scopes of this thread's running functions, innermost first, without the recorder's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not str(frame.f_globals.get("__name__")).startswith(_OURS):
            code, local = frame.f_code, frame.f_locals
            variables = dict(local)
            if sys.version_info < (3, 13) and code.co_flags & inspect.CO_OPTIMIZED:
                local.clear()  # a copy that the frame keeps, and with it variables that the function may delete
            first = variables.get(code.co_varnames[0]) if code.co_argcount else None
            yield _Scope(first, (variables, frame.f_globals))
        frame = frame.f_back


def _owner(module: nn.Module, scopes: Iterable[_Scope]) -> tuple[nn.Module, str]:
    """Return the outermost module whose method is running and that holds this one, and the path inside it."""
    owner, inner = module, ""
    for scope in scopes:
        if isinstance(scope.first, nn.Module) and scope.first is not owner:
            path = next((path for path, part in scope.first.named_modules() if part is module), None)
            if path:
                owner, inner = scope.first, path
    return owner, inner


def _variable(owner: nn.Module, scopes: Sequence[_Scope]) -> str | None:
    for scope in reversed(scopes):
        for variables in scope.variables:
            name: str
            for name, value in list(variables.items()):
                if value is owner and name != "self" and not name.startswith("_"):
                    return name
    return None


def _attribute(owner: nn.Module, scopes: Sequence[_Scope]) -> str | None:
    for scope in scopes:
        if name := _key_of(owner, _attributes(scope.first)):
            return name
    for scope in scopes:
        for variables in scope.variables:
            for name, value in list(variables.items()):
                if name.startswith("__"):
                    continue
                holds = {name: value} if isinstance(value, list | tuple | dict) else _attributes(value)
                if found := _key_of(owner, holds):
                    return found
    return None


def _attributes(value: object) -> Mapping[str, Any]:
    """Return the attributes of a plain object, read without running its code."""
    if value is None or isinstance(value, nn.Module | type) or type(value).__name__ == "module":
        return {}
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return attributes if isinstance(attributes, dict) else {}


def _key_of(owner: nn.Module, attributes: Mapping[str, Any]) -> str | None:
    """Return the name under which attributes hold a module, themselves or in a list, tuple or dict."""
    for name, value in list(attributes.items()):
        if value is owner:
            return name.strip("_") or None
        if isinstance(value, dict) and len(value) <= _MAX_ITEMS:
            for key, item in list(value.items()):
                if item is owner:
                    return key if isinstance(key, str) and key.isidentifier() else f"{name}_{key}"
        elif isinstance(value, list | tuple) and len(value) <= _MAX_ITEMS:
            for index, item in enumerate(value):
                if item is owner:
                    return f"{name}_{index}"
    return None
