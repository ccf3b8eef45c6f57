"""One run of a scenario, start to end: what a trace of the talker is a trace of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from talkerviz.talker.generation.generate import generate
from talkerviz.talker.generation.prompt import ThinkerOutputs, assemble_prompt
from talkerviz.talker.generation.scenario import Scenario, scenario_inputs
from talkerviz.talker.model.config import TalkerConfig


def run(
    talker: Any,
    impl: str,
    scenario: Scenario,
    config: TalkerConfig,
    on_frame: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw a scenario's inputs and `speak` them with a talker from `build_talker(config, impl)`."""
    return speak(talker, impl, scenario, inputs_of(talker, scenario, config), config, on_frame)


def inputs_of(talker: Any, scenario: Scenario, config: TalkerConfig) -> ThinkerOutputs:
    """A scenario's inputs, where and of what type the talker's weights are."""
    weight = talker.codec_head.weight
    return scenario_inputs(scenario, config, weight.device, weight.dtype)


def speak(
    talker: Any,
    impl: str,
    scenario: Scenario,
    thinker: ThinkerOutputs,
    config: TalkerConfig,
    on_frame: Callable[[int], None] | None = None,
) -> Tensor:
    """Speak all of a scenario's frames greedily from the thinker's outputs.

    Returns codes [frames, 16], int64. `on_frame` is called with the number of frames done.
    """
    prompt = assemble_prompt(talker, config, thinker, config.speaker(scenario.speaker))
    if impl == "native":
        return generate(talker, prompt, scenario.frames, ignore_eos=True, on_frame=on_frame)
    from talkerviz.talker.model.transformers_talker import generate_transformers

    return generate_transformers(talker, config, prompt, scenario.frames, ignore_eos=True, on_frame=on_frame)
