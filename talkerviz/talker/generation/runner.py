"""One run of a scenario through either implementation: the workload of a talker's trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from talkerviz.talker.generation.generate import generate
from talkerviz.talker.generation.prompt import ThinkerOutputs, assemble_prompt
from talkerviz.talker.generation.scenario import Scenario, scenario_inputs
from talkerviz.talker.generation.transformers_generate import generate_transformers
from talkerviz.talker.model.config import TalkerConfig


def generate_scenario(
    talker: Any,
    impl: str,
    scenario: Scenario,
    config: TalkerConfig,
    on_frame: Callable[[int], None] | None = None,
    thinker: ThinkerOutputs | None = None,
) -> Tensor:
    """Generate all frames of a scenario greedily, past the end of speech.

    Args:
        talker: a talker from `build_talker(config, impl)` or `load_talker`.
        impl: `native` or `transformers`.
        scenario: lengths, speaker and seed.
        config: the talker's config.
        on_frame: callback for the number of frames done.
        thinker: the thinker's outputs; by default the random ones of `scenario_inputs`.

    Returns:
        Codes [frames, code groups], int64.
    """
    if thinker is None:
        weight = talker.codec_head.weight
        thinker = scenario_inputs(scenario, config, weight.device, weight.dtype)
    prompt = assemble_prompt(talker, config, thinker, config.speaker(scenario.speaker))
    if impl == "native":
        return generate(talker, prompt, scenario.frames, ignore_eos=True, on_frame=on_frame)
    return generate_transformers(talker, config, prompt, scenario.frames, ignore_eos=True, on_frame=on_frame)
