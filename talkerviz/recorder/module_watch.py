"""Modules that a recording watches: those of the model, and those that join it, replicate it or are compiled."""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from types import FrameType
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from talkerviz.recorder.forward_hooks import ForwardHooks
from talkerviz.recorder.module_tree import info_of, layers_of, one_call_regions, takes_hooks, tree_of
from talkerviz.recorder.phases.marking import PhaseMarker
from talkerviz.recorder.python_events import LANDMARK_ONLY, NO_LANDMARK, NOT_RECORDED
from talkerviz.recorder.root_names import name_of_root
from talkerviz.recorder.run_facts import model_facts
from talkerviz.trace.schema import ModuleInfo

_MAX_CLASSES = 5  # named in the fact `strange_calls`
_CALL_CODE = nn.Module._call_impl.__code__


class ModuleWatch:
    """Watches the modules of models, whose calls go to a log.

    Args:
        roots: the models by path.
        selects: returns whether calls of a path are recorded.
        joined: descriptions of modules that join; appended to.
        finds: whether a module that is called outside any other is a further model.

    Attributes:
        modules: every module by path.
        paths: path of each module, by its `id`.
        infos: descriptions of modules, by number.
        compiled: paths of modules that were compiled in the run.
        finds: whether a module that is called outside any other is a further model.
        found: paths of the models that were found, with their classes.
        passed_over: paths of models that were found and are not selected.
    """

    def __init__(
        self,
        roots: Mapping[str, nn.Module],
        selects: Callable[[str], bool],
        joined: list[ModuleInfo],
        finds: bool = False,
    ) -> None:
        # The program may delete a model that was found, and expects its memory back.
        self.modules: MutableMapping[str, nn.Module] = WeakValueDictionary() if finds else {}
        self.infos: tuple[ModuleInfo, ...] = ()
        for name, model in roots.items():
            tree, infos = tree_of(model, name)
            known = {id(module) for module in self.modules.values()}
            self.infos += tuple(info for info in infos if id(tree[info.path]) not in known)
            self.modules.update({path: module for path, module in tree.items() if id(module) not in known})
        self.paths = {id(module): path for path, module in self.modules.items()}
        self.compiled: list[str] = []
        # By number, also those that were replaced.
        self._numbered: list[tuple[str, Callable[[], nn.Module | None]]] = [
            (path, partial(_itself, module)) for path, module in self.modules.items()
        ]
        self._roots = dict(roots)
        self.finds, self.found, self.passed_over = finds, dict[str, str](), dict[str, str]()
        # Of modules that were found: the last number of each path, and the class of each number.
        self._number_of, self._class_of = dict[str, int](), dict[int, str]()
        self._rows: dict[str, int] = {}  # of what is no module, by path
        self._selects = selects
        self._joined = joined
        self._unwatched: Counter[str] = Counter()  # classes of modules called inside watched calls
        # Other threads that were inside a module's call as the recording began: what it calls is no model of its own.
        self._in_earlier_call: set[int] = set()
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
        if self.finds:
            frames = sys._current_frames()
            frames.pop(threading.get_ident())
            self._in_earlier_call = {thread for thread, frame in frames.items() if _is_in_call(frame)}
        layers = layers_of(self.modules)
        for number, (path, module) in enumerate(self.modules.items()):
            self._watch(module, path, number, layers[path])

    def add_hooks(self, hooks: ForwardHooks) -> None:
        """Put forward hooks on every module, and on those that join later."""
        self._hooks = hooks
        # Hooks inside a compiled region would have it compiled anew; those of a scripted module are never called.
        regions = one_call_regions(self._roots)
        for path, module in self.modules.items():
            inside = any(path.startswith(f"{region}.") for region in regions)
            if not inside and (path not in regions or takes_hooks(module)):
                hooks.add(module)

    def find_with_hooks(
        self, guarded: Callable[[Callable[..., None]], Callable[..., None]], undo: list[Callable[[], None]]
    ) -> None:
        """Find models by a hook on all modules, for recordings through hooks.

        Args:
            guarded: wraps a function so that its exceptions do not reach the program.
            undo: functions that undo it, appended to.
        """

        def find(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert self._hooks is not None
            if id(module) in self.paths or torch.compiler.is_compiling() or self._hooks.inside():
                return
            self.on_unwatched(module, False)
            if id(module) in self.paths:
                # Torch listed the hooks of this call before the module's own were added.
                self._hooks.begin(module, args, {})

        undo.append(register_module_forward_pre_hook(guarded(find)).remove)

    def found_facts(self, main: str | None) -> dict[str, Any]:
        """Return facts of the models that were found.

        Args:
            main: path of the one with the most passes.
        """
        alive = {path: module for path in self.found if (module := self.modules.get(path)) is not None}
        first = main or next(iter(self.found), None)
        if first is None:
            return {}
        return {
            **model_facts(alive, first),
            "model": ", ".join(dict.fromkeys(self.found.values())),
            "parameters": sum(info.parameters for info in self.infos if info.path in self.found),
            "weights_bytes": sum(info.parameter_bytes for info in self.infos if info.path in self.found),
        }

    def close(self) -> None:
        """Describe modules as they are at the end of the run, and let no more join."""
        with self._lock:
            self._closed = True
            # A lazy module, and one that was parametrized, has become another class; parameters have sizes now.
            self.infos = tuple(
                info if (module := module_of()) is None else info_of(path, module, info.aliases)
                for info, (path, module_of) in zip(self.infos, self._numbered, strict=True)
            )

    def release(self) -> None:
        """Drop all references to modules."""
        self.modules, self.paths, self._numbered, self._roots = {}, {}, [], {}

    def facts(self, unwatched_calls: int) -> dict[str, Any]:
        """Return facts of the run.

        Args:
            unwatched_calls: number of calls of modules that are not watched, inside those that are.
        """
        facts: dict[str, Any] = {}
        if (joined := len(self._joined) - len(self._rows)) and not self.finds:
            facts["joined_modules"] = joined
        if unwatched_calls:
            classes = [name for name, _ in self._unwatched.most_common(_MAX_CLASSES)]
            facts["strange_calls"] = {"calls": unwatched_calls, "classes": classes}
        return facts

    def _watch(self, module: nn.Module, path: str, number: int, layer: int) -> None:
        landmark = self._marker.landmark(path)
        if not self._selects(path):
            number = LANDMARK_ONLY if landmark != NO_LANDMARK else NOT_RECORDED
        self._events.watch(module, number, layer, landmark, not self.finds)
        if self.finds:
            weakref.finalize(module, self._forget, id(module)).atexit = False

    def _forget(self, identity: int) -> None:
        """Drop a module that was found and has been deleted: another one may get its address."""
        self.paths.pop(identity, None)
        self._events.unwatch(identity)

    def follow_marks(self, landmarks: frozenset[str]) -> None:
        """Have the marker told of each pass of these modules, whose frames the log has counted until now."""
        layers = layers_of(dict(self.modules.items())) if landmarks else {}
        for number, (path, module_of) in enumerate(list(self._numbered)):
            if path in landmarks and (module := module_of()) is not None:
                self._watch(module, path, number, layers[path])

    def add_row(self, path: str) -> int:
        """Return the number of rows of something that is no module, such as an optimizer."""
        with self._lock:
            if path in self._rows:
                return self._rows[path]
            info = ModuleInfo(path, path.partition(".")[0], 0, 0)
            number = len(self.infos)
            self.infos += (info,)
            self._joined.append(info)
            self._numbered.append((path, lambda: None))
            self._rows[path] = number
            return number

    def find(self, module: nn.Module) -> None:
        """Watch a module that the program calls outside any other, with all that it contains.

        A model that takes the place of a deleted one of the same path and class has its rows.
        """
        if self._in_earlier_call and self._is_in_earlier_call():
            return
        with self._lock:
            if self._closed or id(module) in self.paths:
                return
            name, kind = name_of_root(module), type(module).__name__
            path = next(path for path in _numbered_names(name) if path not in self.modules)
            if not any(self._selects(inner) for inner, _ in module.named_modules(prefix=path)):
                self.passed_over[path] = kind
                for part in module.modules():
                    self._events.watch(part, NOT_RECORDED, -1, NO_LANDMARK, False)
                    weakref.finalize(part, self._forget, id(part)).atexit = False
                return
            self.found[path] = kind
            self._join(path, module, is_root=True)

    def _is_in_earlier_call(self) -> bool:
        """Return whether this thread is still inside a module's call that began before the recording."""
        thread = threading.get_ident()
        if thread in self._in_earlier_call and not _is_in_call(sys._getframe(1)):
            self._in_earlier_call.discard(thread)
        return thread in self._in_earlier_call

    def on_registration(self, parent: nn.Module, name: str, module: nn.Module | None) -> None:
        """Watch a module that is registered in one of the model, in torch's registration hook."""
        path = self.paths.get(id(parent))
        if path is not None and module is not None and not self._closed:
            self._join(f"{path}.{name}", module)

    def _join(self, root: str, joined: nn.Module, is_root: bool = False) -> None:
        with self._lock:
            tree, infos = tree_of(joined, root)
            layers = layers_of({**dict(self.modules.items()), **tree})
            if is_root:
                self._marker.add_root(root, tree)
            new: list[ModuleInfo] = []
            for info, (path, module) in zip(infos, tree.items(), strict=True):
                # It may be in the model already, under another name, or be compiled code of a module of the model.
                if id(module) in self.paths or id(getattr(module, "_orig_mod", None)) in self.paths:
                    continue
                number = self._number_of.get(path, -1)
                if number < 0 or self._class_of[number] != info.class_name:
                    number = len(self.infos) + len(new)
                    new.append(info)
                    self._numbered.append((path, weakref.ref(module) if self.finds else partial(_itself, module)))
                    if self.finds:
                        self._number_of[path] = number
                        self._class_of[number] = info.class_name
                self.modules[path] = module  # in the place of one that was replaced
                self.paths[id(module)] = path
                self._watch(module, path, number, layers[path])
                if self._hooks is not None and takes_hooks(module):
                    self._hooks.add(module)
            self.infos += tuple(new)
            self._joined += new

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
        elif self.finds and not inside:
            self.find(module)
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


def _is_in_call(frame: FrameType | None) -> bool:
    """Return whether a function runs inside a call of a module."""
    while frame is not None:
        if frame.f_code is _CALL_CODE:
            return True
        frame = frame.f_back
    return False


def _itself(module: nn.Module) -> nn.Module:
    return module


def _numbered_names(name: str) -> Iterator[str]:
    """Yield a name, and then the same with 2, 3, ... behind it."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))
