"""Modules that a recording watches: those of the model, and those that join it, replicate it or are compiled."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from talkerviz.recorder.forward_hooks import ForwardHooks
from talkerviz.recorder.module_tree import info_of, layers_of, one_call_regions, takes_hooks, tree_of
from talkerviz.recorder.phases.marking import PhaseMarker
from talkerviz.recorder.python_events import LANDMARK_ONLY, NO_LANDMARK, NOT_RECORDED
from talkerviz.trace.schema import ModuleInfo

_MAX_CLASSES = 5  # named in the fact `strange_calls`


class ModuleWatch:
    """Watches the modules of a model, whose calls go to a log.

    Args:
        model: the model.
        root: its path.
        selects: returns whether calls of a path are recorded.
        joined: descriptions of modules that join; appended to.

    Attributes:
        modules: every module by path.
        paths: path of each module, by its `id`.
        infos: descriptions of modules, by number.
        compiled: paths of modules that were compiled in the run.
    """

    def __init__(self, model: nn.Module, root: str, selects: Callable[[str], bool], joined: list[ModuleInfo]) -> None:
        self.modules, self.infos = tree_of(model, root)
        self.paths = {id(module): path for path, module in self.modules.items()}
        self.compiled: list[str] = []
        self._numbered = list(self.modules.items())  # by number, also those that were replaced
        self._root = root
        self._selects = selects
        self._joined = joined
        self._unwatched: Counter[str] = Counter()  # classes of modules called inside watched calls
        self._lock = threading.RLock()
        self._closed = False

    def recorded_paths(self) -> dict[int, str]:
        """Return the path of each module whose calls are recorded, by its `id`."""
        return {id(module): path for path, module in self.modules.items() if self._selects(path)}

    def attach(
        self, events: Any, marker: PhaseMarker, on_replica: list[Callable[[nn.Module, nn.Module], None]]
    ) -> None:
        """Have the log record calls of every module.

        Args:
            events: the log of calls.
            marker: the marker of phases.
            on_replica: functions called with each replica of a recorded module, and the module.
        """
        self._events, self._marker, self._on_replica = events, marker, on_replica
        self._hooks: ForwardHooks | None = None
        layers = layers_of(self.modules)
        for number, (path, module) in enumerate(self.modules.items()):
            self._watch(module, path, number, layers[path])

    def add_hooks(self, hooks: ForwardHooks) -> None:
        """Put forward hooks on every module, and on those that join later."""
        self._hooks = hooks
        # Hooks inside a compiled region would have it compiled anew; those of a scripted module are never called.
        regions = one_call_regions(self.modules[self._root], self._root)
        for path, module in self.modules.items():
            inside = any(path.startswith(f"{region}.") for region in regions)
            if not inside and (path not in regions or takes_hooks(module)):
                hooks.add(module)

    def close(self) -> None:
        """Describe modules as they are at the end of the run, and let no more join."""
        with self._lock:
            self._closed = True
            # A lazy module, and one that was parametrized, has become another class; parameters have sizes now.
            self.infos = tuple(
                info_of(path, module, info.aliases)
                for info, (path, module) in zip(self.infos, self._numbered, strict=True)
            )

    def release(self) -> None:
        """Drop all references to modules."""
        self.modules, self.paths, self._numbered = {}, {}, []

    def facts(self, unwatched_calls: int) -> dict[str, Any]:
        """Return facts of the run.

        Args:
            unwatched_calls: number of calls of modules that are not watched, inside those that are.
        """
        facts: dict[str, Any] = {}
        if self._joined:
            facts["joined_modules"] = len(self._joined)
        if unwatched_calls:
            classes = [name for name, _ in self._unwatched.most_common(_MAX_CLASSES)]
            facts["strange_calls"] = {"calls": unwatched_calls, "classes": classes}
        return facts

    def _watch(self, module: nn.Module, path: str, number: int, layer: int) -> None:
        landmark = self._marker.landmark(path)
        if not self._selects(path):
            number = LANDMARK_ONLY if landmark != NO_LANDMARK else NOT_RECORDED
        self._events.watch(module, number, layer, landmark, True)

    def on_registration(self, parent: nn.Module, name: str, module: nn.Module | None) -> None:
        """Watch a module that is registered in one of the model, in torch's registration hook."""
        path = self.paths.get(id(parent))
        if path is not None and module is not None and not self._closed:
            self._join(f"{path}.{name}", module)

    def _join(self, root: str, joined: nn.Module) -> None:
        with self._lock:
            tree, infos = tree_of(joined, root)
            layers = layers_of({**self.modules, **tree})
            for info, (path, module) in zip(infos, tree.items(), strict=True):
                # It may be in the model already, under another name, or be compiled code of a module of the model.
                if id(module) in self.paths or id(getattr(module, "_orig_mod", None)) in self.paths:
                    continue
                number = len(self.infos)
                self.infos = (*self.infos, info)
                self._joined.append(info)
                self.modules[path] = module  # in the place of one that was replaced
                self.paths[id(module)] = path
                self._numbered.append((path, module))
                self._watch(module, path, number, layers[path])
                if self._hooks is not None:
                    self._hooks.add(module)

    def wrap_replicate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a `_replicate_for_data_parallel` that has calls of replicas recorded as those of the originals."""
        numbers = {
            id(module): number for number, (path, module) in enumerate(self.modules.items()) if self._selects(path)
        }

        def replicate(module: nn.Module) -> nn.Module:
            replica: nn.Module = original(module)
            if id(module) in numbers:
                self._events.watch(replica, numbers[id(module)], -1, NO_LANDMARK, False)
                weakref.finalize(replica, self._events.unwatch, id(replica)).atexit = False
                for listener in self._on_replica:
                    listener(replica, module)
            return replica

        return replicate

    def on_unwatched(self, module: nn.Module, inside: bool) -> None:
        """Watch a module that `torch.compile` made of one of the model's; count another one by its class.

        Args:
            module: a module that is called and not watched.
            inside: whether it is called inside a watched call.
        """
        if isinstance(module, torch._dynamo.OptimizedModule) and id(module._orig_mod) in self.paths:
            self._watch_compiled(module, self.paths[id(module._orig_mod)])
        elif inside:
            self._unwatched[type(module).__name__] += 1

    def _watch_compiled(self, module: nn.Module, path: str) -> None:
        """Record calls of a compiled module as calls of the module that it was compiled from."""
        target = getattr(getattr(module.forward, "_torchdynamo_orig_callable", None), "__func__", None)
        if target in (self._events, vars(nn.Module)["__call__"]):
            return  # it was compiled in this recording, and calls the module by way of the tap
        with self._lock:
            number = next(number for number, (known, _) in enumerate(self._numbered) if known == path)
            self.paths[id(module)] = path
            self._marker.add_compiled(module, self.modules[path])
            self._watch(module, path, number, layers_of(self.modules)[path])
            self.compiled.append(path)
