"""The modules of a model: by path, described, and chosen by pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from talkerviz.trace.schema import ModuleInfo


def check_model(model: object) -> None:
    """Raise ValueError for what is no module."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model must be a torch.nn.Module, not a {type(model).__name__}{if_several(model)}")


def if_several(roots: object) -> str:
    """What to do with several models, to be added to a message; empty where it is something else that is no module."""
    return "; several roots go into a torch.nn.ModuleList" if isinstance(roots, list | tuple) else ""


def tree_of(model: nn.Module, name: str) -> tuple[dict[str, nn.Module], tuple[ModuleInfo, ...]]:
    """Every module by its first path from the root, which has the name given, and what is to be known of it."""
    modules: dict[str, nn.Module] = {}
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(prefix=name, remove_duplicate=False):
        if id(module) not in paths:
            modules[path] = module
        paths.setdefault(id(module), []).append(path)
    infos = tuple(
        ModuleInfo(
            path,
            type(module).__name__,
            sum(p.numel() for p in _sized_parameters(module)),
            sum(p.numel() * p.element_size() for p in _sized_parameters(module)),
            tuple(paths[id(module)][1:]),
        )
        for path, module in modules.items()
    )
    return modules, infos


def _sized_parameters(module: nn.Module) -> list[nn.Parameter]:
    # A lazy module learns its parameters' sizes at its first call.
    return [parameter for parameter in module.parameters(recurse=False) if not is_lazy(parameter)]


def select_modules(
    model: nn.Module, name: str, include: Sequence[str], exclude: Sequence[str], depth: int | None
) -> Callable[[str], bool]:
    """Which paths to record; see `recording` for the arguments.

    Raises:
        ValueError: a pattern that no module fits, or nothing left to record.
    """
    paths = [path for path, _ in model.named_modules(prefix=name)]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ValueError(
                f"no module fits {pattern!r}: paths begin with {name!r}, such as {paths[len(paths) // 2]!r}"
            )
    chosen = {
        path
        for path in paths
        if (not include or any(fnmatchcase(path, pattern) for pattern in include))
        and not any(fnmatchcase(path, pattern) for pattern in exclude)
        and (depth is None or path.count(".") - name.count(".") <= depth)
    }
    if not chosen:
        raise ValueError("no module is left to record: widen --include, narrow --exclude or give a greater --depth")
    return chosen.__contains__


def one_call_regions(model: nn.Module, name: str) -> dict[str, str]:
    """Modules inside which there may be no Python calls to record, and why: `compiled` or `scripted`."""
    found: dict[str, str] = {}
    for path, module in model.named_modules(prefix=name):
        if any(path.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            found[path] = "scripted"
        elif (
            isinstance(module, torch._dynamo.OptimizedModule)
            or module._compiled_call_impl is not None
            or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        ):
            found[path] = "compiled"
    return found
