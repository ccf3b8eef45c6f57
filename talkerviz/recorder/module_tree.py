"""The modules of a model: by path, described, and chosen by pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    infos = tuple(info_of(path, module, tuple(paths[id(module)][1:])) for path, module in modules.items())
    return modules, infos


def info_of(path: str, module: nn.Module, aliases: tuple[str, ...] = ()) -> ModuleInfo:
    """What is to be known of a module."""
    parameters = _sized_parameters(module)
    return ModuleInfo(
        path,
        type(module).__name__,
        sum(p.numel() for p in parameters),
        sum(p.numel() * p.element_size() for p in parameters),
        aliases,
    )


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

    def is_chosen(path: str) -> bool:
        return (
            (not include or any(fnmatchcase(path, pattern) for pattern in include))
            and not any(fnmatchcase(path, pattern) for pattern in exclude)
            and (depth is None or path.count(".") - name.count(".") <= depth)
        )

    if not any(map(is_chosen, paths)):
        raise ValueError("no module is left to record: widen --include, narrow --exclude or give a greater --depth")
    return is_chosen


def layers_of(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """The layer that each module is in, -1 for none: which part of a cache its calls read.

    It is what `layer_idx` says, transformers' name for it, of the module, one around it or the one inside it; else the
    place in the outermost list of modules.

    Args:
        modules: every module by its path, callers before what they call.
    """
    found: dict[str, int] = {}
    for path, module in modules.items():
        own = vars(module).get("layer_idx")
        around, _, last = path.rpartition(".")
        if type(own) is int and own >= 0:
            found[path] = own
        elif (layer := found.get(around, -1)) >= 0:
            found[path] = layer
        elif isinstance(modules.get(around), nn.ModuleList) and last.isdigit() and "." in around:
            inside = {vars(part).get("layer_idx") for part in module.modules()} - {None}
            alone = inside.pop() if len(inside) == 1 else None
            found[path] = alone if type(alone) is int and alone >= 0 else int(last)
        else:
            found[path] = -1
    return found


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


def takes_hooks(module: nn.Module) -> bool:
    """Whether hooks on a module that `one_call_regions` finds are called around what is compiled, and not in it."""
    return not isinstance(module, torch.jit.ScriptModule) and module._compiled_call_impl is None
