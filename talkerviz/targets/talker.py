"""The talker of a preset or a checkpoint as a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.talker.acceleration import accelerate, check_acceleration
from talkerviz.talker.files.build import build_talker, load_talker
from talkerviz.talker.files.checkpoint import find_module, read_talker_config
from talkerviz.talker.files.thinker_file import read_inputs
from talkerviz.talker.files.weight_loader import OnBytes
from talkerviz.talker.generation.compile_choice import keep_faster_layers
from talkerviz.talker.generation.cuda_graphs import WARM_UPS
from talkerviz.talker.generation.prompt import ThinkerOutputs, assemble_prompt
from talkerviz.talker.generation.runner import generate_scenario
from talkerviz.talker.generation.scenario import Scenario, scenario_inputs
from talkerviz.talker.model.attention import disable_cudnn_attention
from talkerviz.talker.model.config import TalkerConfig, default_dtype, preset
from talkerviz.talker.model.decoder import DecoderLayer
from talkerviz.talker.model.int8 import check_int8_device, quantise_talker
from talkerviz.talker.model.rope import RotaryEmbedding
from talkerviz.talker.model.talker import Acceleration, TalkerForConditionalGeneration
from talkerviz.targets.target import Target, facts_of

_ROOT = "talker"


@dataclass(frozen=True)
class Loaded:
    """A talker and its inputs.

    Attributes:
        talker: the model.
        config: its config.
        thinker: thinker outputs to speak.
        impl: implementation, native or transformers.
        scenario: lengths, speaker and seed.
        facts: metadata for the trace.
    """

    talker: nn.Module
    config: TalkerConfig
    thinker: ThinkerOutputs
    impl: str
    scenario: Scenario
    facts: Mapping[str, Any]


def talker_of(
    source: str | Path,
    impl: str,
    device: str,
    dtype: torch.dtype | None,
    scenario: Scenario,
    inputs: Path | None = None,
    on_bytes: OnBytes | None = None,
    acceleration: Acceleration = Acceleration(),  # noqa: B008
    *,
    int8: bool = False,
) -> Loaded:
    """Build the talker of a preset with random weights, or load that of a checkpoint, with its inputs.

    Args:
        source: name of a preset, or path of a checkpoint's folder.
        impl: native or transformers.
        device: device of the weights.
        dtype: dtype of the weights; by default the preset's or the checkpoint's.
        scenario: lengths, speaker and frames; its seed is for a preset's weights and for random inputs.
        inputs: file of thinker outputs; by default they are random.
        on_bytes: progress callback of a checkpoint's loading, see `read_into`.
        acceleration: ways to speed up the native talker. Compiled layers are kept if they are faster than eager ones.
        int8: quantise the weights of the native talker's layers, see `quantise_talker`.

    Raises:
        ValueError: an unknown preset, implementation or speaker, a checkpoint that cannot be loaded, inputs that do not
            fit, or an acceleration that is not available.
    """
    if acceleration.enabled() and impl != "native":
        raise ValueError(f"only the native talker is compiled, fused or captured, not {impl}'s")
    if int8 and impl != "native":
        raise ValueError(f"--weights int8: only the native talker has it, not {impl}'s")
    if isinstance(source, Path):
        config = read_talker_config(source)
        stored = find_module(source, "talker.")
        dtype = dtype or stored.dtype
    else:
        config, stored = preset(source), None
        dtype = dtype or default_dtype(source)
    # Checked before the weights, which take longer.
    config.speaker(scenario.speaker)
    check_acceleration(acceleration, torch.device(device), config)
    if int8:
        check_int8_device(torch.device(device))
    if torch.device(device).type == "cuda":
        disable_cudnn_attention()
    read = read_inputs(inputs, config, device, dtype) if inputs else None
    if stored:
        talker = load_talker(config, stored, impl, device, dtype, on_bytes)
    else:
        talker = build_talker(config, impl, device, dtype, scenario.seed)
    if int8:
        quantise_talker(cast(TalkerForConditionalGeneration, talker))
    accelerate(cast(TalkerForConditionalGeneration, talker), acceleration)
    thinker = read or scenario_inputs(scenario, config, device, dtype)
    speed = None
    if acceleration.compiled and not acceleration.graphs:
        prompt = assemble_prompt(talker, config, thinker, config.speaker(scenario.speaker))
        speed = keep_faster_layers(cast(TalkerForConditionalGeneration, talker), prompt)
    lengths = {"prompt_tokens": thinker.user.shape[1], "text_tokens": thinker.assistant.shape[1]}
    facts = {
        **facts_of(source),
        "impl": impl,
        "scenario": asdict(scenario) | lengths,
        "codes_a_frame": config.num_code_groups,
        **({"files_read": ["config.json", *stored.file_names]} if stored else {}),
        **({"inputs": str(inputs)} if inputs else {}),
        **({"weights": "int8"} if int8 else {}),
        **dict.fromkeys(acceleration.enabled(), True),
        **({"compiled": speed >= 1, "compiled_speed": speed} if speed is not None else {}),
        **({"one_call": _fused_in(talker)} if acceleration.fused else {}),
    }
    return Loaded(talker, config, thinker, impl, scenario, facts)


def talker_target(loaded: Loaded) -> Target:
    """Make a target that generates the scenario's frames greedily."""
    return Target(
        name=_ROOT,
        model=loaded.talker,
        run=lambda on_frame: generate_scenario(
            loaded.talker, loaded.impl, loaded.scenario, loaded.config, on_frame, loaded.thinker
        ),
        facts=loaded.facts,
        phases=partial(TalkerPhases, warm_ups=WARM_UPS) if "graphs" in loaded.facts else TalkerPhases,
        frames=loaded.scenario.frames,
    )


def _fused_in(talker: nn.Module) -> dict[str, str]:
    """Return the paths of modules whose inside is one call in the trace, or whose outputs differ, if they are fused."""
    named = talker.named_modules(prefix=_ROOT)
    return {path: "fused" for path, module in named if isinstance(module, DecoderLayer | RotaryEmbedding)}
