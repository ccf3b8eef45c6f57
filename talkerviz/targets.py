"""What can be traced: the talker in its presets, or what a function of the user's returns."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talkerviz.record.phases import ForwardPhases, PhaseRule, TalkerPhases
from talkerviz.talker.config import default_dtype, preset
from talkerviz.talker.run import inputs_of, speak
from talkerviz.talker.scenario import Scenario
from talkerviz.talker.weights import build_talker

OnFrame = Callable[[int], None]


@dataclass(frozen=True)
class Target:
    """A model, and the code that runs it once.

    Attributes:
        name: the root's name in the trace.
        model: the module that is traced.
        run: runs it; calls back with the number of frames done, and returns what the run produced.
        phases: makes the rule by which one run divides into phases.
        facts: what to note of it in the trace.
        frames: how many frames the run has, where that is known beforehand.
    """

    name: str
    model: nn.Module
    run: Callable[[OnFrame], Any]
    phases: Callable[[], PhaseRule]
    facts: Mapping[str, Any]
    frames: int | None = None


def talker_target(preset_name: str, impl: str, device: str, dtype: torch.dtype | None, scenario: Scenario) -> Target:
    """The talker with random weights from the scenario's seed.

    Raises:
        ValueError: an unknown preset or implementation.
    """
    config = preset(preset_name)
    dtype = dtype or default_dtype(preset_name)
    talker = build_talker(config, impl, device, dtype, scenario.seed)
    thinker = inputs_of(talker, scenario, config)
    return Target(
        name="talker",
        model=talker,
        run=lambda on_frame: speak(talker, impl, scenario, thinker, config, on_frame),
        phases=lambda: TalkerPhases("talker"),
        facts={"preset": preset_name, "impl": impl, "scenario": asdict(scenario)},
        frames=scenario.frames,
    )


def function_target(spec: str) -> Target:
    """`package.module:function`; the function returns a model and a callable that runs it.

    Raises:
        ValueError: there is no such module or function, or it returns something else.
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"target {spec!r}: give `talker` or `package.module:function`")
    # As `python -m` does, so that a script beside the user is found.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"target {spec!r}: {error}") from error
    made = function()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1])):
        raise ValueError(f"target {spec!r}: the function must return (model, callable), not {type(made).__name__}")
    model, run_model = made
    return Target("model", model, lambda on_frame: run_model(), lambda: ForwardPhases("model"), {"target": spec})
