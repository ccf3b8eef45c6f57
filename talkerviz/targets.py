"""What can be traced: talker and code2wav of a preset or a checkpoint, or what a function of the user's returns."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from talkerviz.cause import cause_of
from talkerviz.foreign.from_config import build, read_config
from talkerviz.foreign.run import runner
from talkerviz.recorder.passes import PassPhases
from talkerviz.recorder.phases import PhaseRule, TalkerPhases
from talkerviz.talker.checkpoint import find_module, read_talker_config
from talkerviz.talker.code2wav import (
    CHUNK_FRAMES,
    LEFT_CONTEXT,
    build_code2wav,
    code2wav_config,
    load_code2wav,
    read_code2wav_config,
    stream_audio,
)
from talkerviz.talker.codes_file import read_codes
from talkerviz.talker.compiled import compile_talker
from talkerviz.talker.config import TalkerConfig, default_dtype, preset
from talkerviz.talker.fill import OnBytes
from talkerviz.talker.fused import check_kernels, fuse_talker
from talkerviz.talker.graphs import WARM_UPS, check_device, replay_frames
from talkerviz.talker.prompt import ThinkerOutputs
from talkerviz.talker.run import inputs_of, speak
from talkerviz.talker.scenario import Scenario
from talkerviz.talker.talker import TalkerForConditionalGeneration
from talkerviz.talker.thinker_file import read_inputs
from talkerviz.talker.weights import build_talker, load_talker

OnFrame = Callable[[int], None]


@dataclass(frozen=True)
class Target:
    """A model, and the code that runs it once.

    Attributes:
        name: the root's name in the trace.
        model: the module that is traced.
        run: runs it; calls back with the number of frames done, and returns what the run produced.
        facts: what to note of it in the trace.
        phases: how the run divides into phases, as `recording` takes it.
        frames: how many frames the run has, where that is known beforehand.
    """

    name: str
    model: nn.Module
    run: Callable[[OnFrame], Any]
    facts: Mapping[str, Any]
    phases: Callable[[str], PhaseRule] | None = None
    frames: int | None = None


@dataclass(frozen=True)
class Loaded:
    """A talker and what it is to speak.

    Attributes:
        talker: the model.
        config: its numbers.
        thinker: what a thinker gave it.
        impl: whose implementation it is, native or transformers.
        scenario: how it is spoken.
        facts: what to note of all that.
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
    *,
    compiled: bool = False,
    fused: bool = False,
    graphs: bool = False,
) -> Loaded:
    """The talker of a preset with random weights, or that of a checkpoint, and what it is to speak.

    Args:
        source: a preset's name, or the path of a checkpoint's folder.
        impl: native or transformers.
        device: where it runs.
        dtype: what its weights are; by default the preset's, or as the checkpoint has them.
        scenario: what it speaks; its seed draws a preset's weights, and the inputs unless they are given.
        inputs: a file with what a thinker gave.
        on_bytes: called while a checkpoint is read, see `read_into`.
        compiled: have torch.compile make code of its layers, see `compile_talker`.
        fused: have its layers run as few kernels, see `fuse_talker`.
        graphs: speak by replaying a CUDA graph, see `replay_frames`.

    Raises:
        ValueError: an unknown preset, implementation or speaker, a checkpoint that cannot be loaded, inputs that do not
            fit, or what cannot be compiled, fused or captured.
    """
    if (compiled or fused or graphs) and impl != "native":
        raise ValueError(f"only the native talker is compiled, fused or captured, not {impl}'s")
    if compiled and fused:
        raise ValueError("--fused: --compile makes other code of the same layers; give one of them")
    if isinstance(source, Path):
        config = read_talker_config(source)
        stored = find_module(source, "talker.")
        dtype = dtype or stored.dtype
    else:
        config, stored = preset(source), None
        dtype = dtype or default_dtype(source)
    # First, since weights take longer.
    config.speaker(scenario.speaker)
    if fused:
        check_kernels(torch.device(device), config)
    if graphs:
        check_device(torch.device(device))
    read = read_inputs(inputs, config, device, dtype) if inputs else None
    if stored:
        talker = load_talker(config, stored, impl, device, dtype, on_bytes)
    else:
        talker = build_talker(config, impl, device, dtype, scenario.seed)
    if compiled:
        compile_talker(cast(TalkerForConditionalGeneration, talker))
    if fused:
        fuse_talker(cast(TalkerForConditionalGeneration, talker))
    if graphs:
        replay_frames(cast(TalkerForConditionalGeneration, talker))
    thinker = read or inputs_of(talker, scenario, config)
    lengths = {"prompt_tokens": thinker.user.shape[1], "text_tokens": thinker.assistant.shape[1]}
    facts = {
        **_whose(source),
        "impl": impl,
        "scenario": asdict(scenario) | lengths,
        **({"inputs": str(inputs)} if inputs else {}),
        **({"compiled": True} if compiled else {}),
        **({"fused": True} if fused else {}),
        **({"graphs": True} if graphs else {}),
    }
    return Loaded(talker, config, thinker, impl, scenario, facts)


def talker_target(loaded: Loaded) -> Target:
    """A talker that speaks its scenario greedily."""
    return Target(
        name="talker",
        model=loaded.talker,
        run=lambda on_frame: speak(
            loaded.talker, loaded.impl, loaded.scenario, loaded.thinker, loaded.config, on_frame
        ),
        facts=loaded.facts,
        phases=partial(TalkerPhases, warm_ups=WARM_UPS) if "graphs" in loaded.facts else TalkerPhases,
        frames=loaded.scenario.frames,
    )


def code2wav_config_of(source: str | Path) -> Any:
    """transformers' config of a preset's code2wav, or of a checkpoint's. Raises ValueError as these do."""
    return read_code2wav_config(source) if isinstance(source, Path) else code2wav_config(source)


def code2wav_of(
    source: str | Path,
    device: str,
    dtype: torch.dtype | None,
    seed: int = 0,
    on_bytes: OnBytes | None = None,
) -> Any:
    """transformers' code2wav, of a preset with random weights or of a checkpoint.

    Raises:
        ValueError: an unknown preset, or a checkpoint that cannot be loaded.
    """
    config = code2wav_config_of(source)
    if isinstance(source, Path):
        return load_code2wav(config, find_module(source, "code2wav."), device, dtype, on_bytes)
    return build_code2wav(config, device, dtype or default_dtype(source), seed)


def code2wav_target(
    source: str | Path,
    device: str,
    dtype: torch.dtype | None,
    codes: Path | None,
    frames: int,
    seed: int = 0,
    on_bytes: OnBytes | None = None,
) -> Target:
    """The code2wav that makes sound of a file's codes, or of random ones, a pass for each chunk as `speak` has them.

    Args:
        source: a preset's name, or the path of a checkpoint's folder.
        device: where it runs.
        dtype: what its weights are; by default the preset's, or as the checkpoint has them.
        codes: a file of `--codes`.
        frames: how many frames there are, where no file says so.
        seed: draws a preset's weights, and codes.
        on_bytes: called while a checkpoint is read, see `read_into`.

    Raises:
        ValueError: as `code2wav_of`, no frames, or codes that do not fit.
    """
    config = code2wav_config_of(source)
    if codes:
        rows = read_codes(codes, config)
    else:
        if frames < 1:
            raise ValueError(f"frames must be at least 1, not {frames}")
        drawn = torch.Generator().manual_seed(seed)
        rows = torch.randint(config.codebook_size, (frames, config.num_quantizers), generator=drawn)
    code2wav = code2wav_of(source, device, dtype, seed, on_bytes)

    def run(on_frame: OnFrame) -> None:
        for chunk, _ in enumerate(stream_audio(code2wav, rows), start=1):
            on_frame(min(chunk * CHUNK_FRAMES, len(rows)))

    return Target(
        name="code2wav",
        model=code2wav,
        run=run,
        phases=PassPhases,
        facts={
            **_whose(source),
            **({"codes": str(codes)} if codes else {"seed": seed}),
            "code_frames": len(rows),
            "chunk_frames": CHUNK_FRAMES,
            "left_context": LEFT_CONTEXT,
        },
        frames=len(rows),
    )


def _whose(source: str | Path) -> dict[str, str]:
    return {"checkpoint": source.resolve().name} if isinstance(source, Path) else {"preset": source}


def is_config(target: str) -> bool:
    """Whether a target is a folder with a config, or a config's file, and no function's name."""
    return Path(target).is_dir() or target.endswith(".json")


def config_target(path: Path, device: str, dtype: torch.dtype | None, tokens: int, seed: int = 0) -> Target:
    """A model of transformers from its config: it generates where it can, else makes one pass, on inputs made for it.

    Args:
        path: a folder whose safetensors are loaded if it has any, or a config's file. Weights are drawn otherwise.
        device: where it runs; on meta one forward pass.
        dtype: of the weights; by default what the config says, else float32.
        tokens: how many to generate.
        seed: draws weights and inputs.

    Raises:
        ValueError: no config of a model that transformers has, weights that do not fit it, or no inputs that it runs
            on.
    """
    if tokens < 1:
        raise ValueError(f"frames must be at least 1, not {tokens}")
    config = read_config(path)
    if config.model_type == "qwen3_omni_moe":
        raise ValueError(f"{path}: a whole Qwen3-Omni; its talker is traced by `talkerviz trace --checkpoint {path}`")
    folder = path if path.is_dir() and device != "meta" else None
    built = build(config, folder, device, dtype, seed)
    runs = runner(built.model, tokens, seed, generates=device != "meta")
    return Target(
        name="model",
        model=built.model,
        run=lambda on_frame: runs.run(),
        facts={
            "target": str(path),
            "weights": built.weights,
            "runs": "generate" if runs.generates else "forward",
            "inputs": runs.shapes(),
            **({"seed": seed} if built.weights == "random" else {}),
            **({"weights_note": built.note} if built.note else {}),
        },
    )


def function_target(spec: str) -> Target:
    """`package.module:function`; the function returns a model and a callable that runs it.

    Raises:
        ValueError: there is no such module or function, it raises something, or it returns something else.
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise ValueError(
            f"target {spec!r}: give `talker`, `code2wav`, a folder with a config.json, or `package.module:function`"
        )
    # As `python -m` does, so that a script beside the user is found.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"target {spec!r}: {error}") from error
    except Exception as error:
        raise ValueError(f"target {spec!r}: importing {module_name} raised {cause_of(error)}") from error
    try:
        made = function()
    except Exception as error:
        raise ValueError(f"target {spec!r}: the function raised {cause_of(error)}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1])):
        raise ValueError(f"target {spec!r}: the function must return (model, callable), not {type(made).__name__}")
    model, run_model = made
    return Target("model", model, lambda on_frame: run_model(), {"target": spec})
