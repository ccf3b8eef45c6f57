"""Module tree of a model: modules by path, their descriptions, and their selection by pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from talkerviz.trace.schema import ModuleInfo


def check_model(model: object) -> None:
    """Raise ValueError for anything but a module, or several by name."""
    if isinstance(model, Mapping):
        if not model:
            raise ValueError("the mapping of models is empty; name at least one model")
        for name, part in model.items():
            if not (isinstance(name, str) and name.isprintable() and name.strip()) or "." in name:
                raise ValueError(
                    f"model name {name!r}: give it a name without dots that can be printed, such as 'unet'"
                )
            if not isinstance(part, nn.Module):
                raise ValueError(f"model {name!r} must be a torch.nn.Module, not a {type(part).__name__}")
    elif not isinstance(model, nn.Module):
        several = "; several models go into a dict, by name" if isinstance(model, list | tuple) else ""
        raise ValueError(f"the model must be a torch.nn.Module, not a {type(model).__name__}{several}")


def if_several(roots: object) -> str:
    """Return the end of an error message for a list or tuple of models of a target; empty for any other object."""
    return "; several roots go into a torch.nn.ModuleList" if isinstance(roots, list | tuple) else ""


def roots_of(model: nn.Module | Mapping[str, nn.Module] | None, name: str) -> dict[str, nn.Module]:
    """Return the models to record by name; none if they are to be found in the run."""
    if model is None:
        return {}
    return dict(model) if isinstance(model, Mapping) else {name: model}


def named_modules(roots: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module of several models with its first path."""
    known: set[nn.Module] = set()
    for name, model in roots.items():
        yield from model.named_modules(known, name)


def tree_of(model: nn.Module, name: str) -> tuple[dict[str, nn.Module], tuple[ModuleInfo, ...]]:
    """Return every module by its first path from the root, and a description of each.

    Args:
        model: the root module.
        name: the root's path.
    """
    modules: dict[str, nn.Module] = {}
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(prefix=name, remove_duplicate=False):
        if id(module) not in paths:
            modules[path] = module
        paths.setdefault(id(module), []).append(path)
    infos = tuple(info_of(path, module, tuple(paths[id(module)][1:])) for path, module in modules.items())
    return modules, infos


def info_of(path: str, module: nn.Module, aliases: tuple[str, ...] = ()) -> ModuleInfo:
    """Return the description of a module.

    Args:
        path: its first path from the root.
        module: the module.
        aliases: its other paths.
    """
    return ModuleInfo(path, type(module).__name__, *parameter_sizes([module]), aliases)


def parameter_sizes(modules: Iterable[nn.Module]) -> tuple[int, int]:
    """Return the number of elements of all distinct parameters in some modules and their children, and their bytes.

    The bytes are those of the tensors that a parameter holds: of a wrapper subclass, such as torchao's quantised
    weights, or a shard of a DTensor, its parts; of others with further tensors in their attributes, such as the scales
    of bitsandbytes, both. Of lazy modules' parameters, which have no sizes yet, none.
    """
    distinct = {id(parameter): parameter for module in modules for parameter in module.parameters()}
    sized = [parameter for parameter in distinct.values() if not is_lazy(parameter)]
    return sum(parameter.numel() for parameter in sized), sum(map(_bytes_of, sized))


_MAX_HELD_DEPTH = 2  # objects from a weight to a tensor: scales of bitsandbytes have scales of their own


def _bytes_of(parameter: Tensor) -> int:
    """Return the bytes that a parameter holds; those of its elements where a subclass does not say what it holds."""
    try:
        return _stored_bytes(parameter)
    except Exception:  # code of the subclass
        return parameter.numel() * parameter.element_size()


def _stored_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor holds, with those of the tensors that it is made of."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor.numel() * tensor.element_size()
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        parts = [getattr(tensor, name) for name in names]
        return sum(_stored_bytes(part) for part in parts if isinstance(part, Tensor))  # a DTensor has its mesh too
    own = _address(tensor)
    held: dict[int, Tensor] = {}
    _add_held(vars(tensor), held, _MAX_HELD_DEPTH)
    held.pop(own, None)
    whole = 0 if held and not own else tensor.numel() * tensor.element_size()
    return whole + sum(map(_stored_bytes, held.values()))


def _address(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; 0 if it has none, as a wrapper of others."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def _add_held(attributes: Mapping[str, Any], held: dict[int, Tensor], depth: int) -> None:
    """Add the tensors in public attributes, and in those of the objects there, by their address."""
    for name, value in attributes.items():
        if name.startswith("_") or name == "grad" or callable(value):
            continue
        if isinstance(value, Tensor):
            held.setdefault(_address(value) or id(value), value)
        elif depth and isinstance(inner := getattr(value, "__dict__", None), dict):
            _add_held(inner, held, depth - 1)


def select_modules(
    roots: Mapping[str, nn.Module], include: Sequence[str], exclude: Sequence[str], depth: int | None
) -> Callable[[str], bool]:
    """Return a predicate of the paths to record; see `recording` for the arguments.

    Args:
        roots: the models by name; if there are none yet, no pattern is checked.
        include: patterns of paths to record; all if empty.
        exclude: patterns of paths to leave out.
        depth: maximum levels below a root.

    Raises:
        ValueError: a pattern matches no module, or no module is left to record.
    """
    paths = [path for path, _ in named_modules(roots)]
    if not paths and depth is not None:
        raise ValueError("depth: only for models that are given, since paths of others begin at any level")
    name = next(iter(roots), "")
    for pattern in (*include, *exclude) if paths else ():
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ValueError(
                f"no module matches {pattern!r}: paths begin with {name!r}, such as {paths[len(paths) // 2]!r}"
            )

    levels = name.count(".")

    def is_chosen(path: str) -> bool:
        return (
            (not include or any(fnmatchcase(path, pattern) for pattern in include))
            and not any(fnmatchcase(path, pattern) for pattern in exclude)
            and (depth is None or path.count(".") <= levels + depth)
        )

    if paths and not any(map(is_chosen, paths)):
        raise ValueError("no module is left to record: widen --include, narrow --exclude or give a greater --depth")
    return is_chosen


def layers_of(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return each module's layer index, -1 for none: the part of a cache that its calls read.

    It is transformers' attribute `layer_idx` of the module, of a module around it or of the only one inside it; else
    the index in the outermost `ModuleList`.

    Args:
        modules: every module by its path, parents before children.
    """
    layers: dict[str, int] = {}
    for path, module in modules.items():
        own = vars(module).get("layer_idx")
        around, _, last = path.rpartition(".")
        if type(own) is int and own >= 0:
            layers[path] = own
        elif (layer := layers.get(around, -1)) >= 0:
            layers[path] = layer
        elif isinstance(modules.get(around), nn.ModuleList) and last.isdigit() and "." in around:
            inside = {vars(part).get("layer_idx") for part in module.modules()} - {None}
            alone = inside.pop() if len(inside) == 1 else None
            layers[path] = alone if type(alone) is int and alone >= 0 else int(last)
        else:
            layers[path] = -1
    return layers


def one_call_regions(roots: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the paths of modules without Python calls inside, and the reason: `compiled` or `scripted`."""
    regions: dict[str, str] = {}
    for path, module in named_modules(roots):
        if any(path.startswith(f"{outer}.") for outer in regions):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            regions[path] = "scripted"
        elif (
            isinstance(module, torch._dynamo.OptimizedModule)
            or module._compiled_call_impl is not None
            or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        ):
            regions[path] = "compiled"
    return regions


def takes_hooks(module: nn.Module) -> bool:
    """Return whether hooks on a module of `one_call_regions` run around the compiled code, and not inside it."""
    return not isinstance(module, torch.jit.ScriptModule) and module._compiled_call_impl is None
