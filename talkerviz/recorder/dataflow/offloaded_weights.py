"""Weights that accelerate offloads and moves to the device for each call, as with `device_map="auto"`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.recorder.method_patch import patch_method


def parameter_devices(model: nn.Module) -> Iterator[torch.device]:
    """Iterate over the device of each parameter, or the one that it is moved to when its module is called."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            yield _execution_device(module) if parameter.is_meta else parameter.device


def _execution_device(module: nn.Module) -> torch.device:
    hook = getattr(module, "_hf_hook", None)
    for candidate in (hook, *getattr(hook, "hooks", ())):
        device = getattr(candidate, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return torch.device("meta")


def watch_moved_weights(
    hide: Callable[[Callable[[], Any]], Any], keep: Callable[[Tensor], None], undo: list[Callable[[], None]]
) -> None:
    """Report weights that accelerate moves to the device from now on.

    Args:
        hide: called with a function that reads or moves a weight; runs it and returns its result.
        keep: called with each weight that was moved into its module.
        undo: list that gets the functions that end the reports.
    """
    hooks, offload = sys.modules.get("accelerate.hooks"), sys.modules.get("accelerate.utils.offload")
    if hooks is None or offload is None:
        return

    def make_set(original: Callable[..., Any]) -> Callable[..., Any]:
        def set_tensor(module: nn.Module, tensor_name: str, *args: Any, **kwargs: Any) -> Any:
            result = hide(lambda: original(module, tensor_name, *args, **kwargs))
            path, _, name = tensor_name.rpartition(".")
            tensor = getattr(module.get_submodule(path), name, None)
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                keep(tensor)
            return result

        return set_tensor

    def make_getitem(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, key: hide(lambda: original(self, key))

    patch_method(hooks, "set_module_tensor_to_device", make_set, undo)
    patch_method(offload.OffloadedWeightsLoader, "__getitem__", make_getitem, undo)
