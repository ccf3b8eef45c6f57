"""A talker of another family as a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from talkerviz.targets.families.family import Family, Speech
from talkerviz.targets.huggingface.config_check import check_memory
from talkerviz.targets.huggingface.from_config import build, read_config
from talkerviz.targets.huggingface.quiet_transformers import quiet
from talkerviz.targets.target import Target, facts_of

_ROOT = "model"


def family_target(
    family: Family,
    source: str | Path,
    device: str,
    dtype: torch.dtype | None,
    speech: Speech,
) -> Target:
    """Build a family's talker with its codec, and make a target that speaks.

    Args:
        family: the family.
        source: name of a preset, with random weights, or path of a checkpoint's folder.
        device: device of the weights.
        dtype: dtype of the weights; by default float32, for `full` bfloat16, and a checkpoint's own.
        speech: lengths of prompt and speech, and the seed of a preset's weights and of the prompt.

    Raises:
        ValueError: an unknown preset, a checkpoint that cannot be loaded, or weights that do not fit the memory.
    """
    for name in ("text_tokens", "frames"):
        if getattr(speech, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(speech, name)}")
    if isinstance(source, Path):
        model, loaded = _load(family, source, device, dtype)
    else:
        model, loaded = build_preset(family, source, device, dtype, speech.seed), {"weights": "random"}
    on_cuda = [torch.device(device)] if device.startswith("cuda") else []

    @torch.no_grad()
    def run(on_frame: object) -> Any:
        with quiet(), torch.random.fork_rng(devices=on_cuda):
            torch.manual_seed(speech.seed)  # for vocoders that begin with noise
            return family.speak(model, speech)

    return Target(
        name=_ROOT,
        model=model,
        run=run,
        facts={
            "family": family.name,
            **facts_of(source),
            **loaded,
            "codec": family.codec,
            "text_tokens": speech.text_tokens,
            "speech_frames": speech.frames,
            "seed": speech.seed,
            "frame_rate_hz": family.frame_rate_hz,
            "codes_a_frame": family.codes_a_frame,
            # Bark's passes are of several models, and none is a frame.
            **({"frame_ns": 1e9 / family.frame_rate_hz} if 1 in family.passes.values() else {}),
        },
    )


def build_preset(family: Family, preset: str, device: str, dtype: torch.dtype | None, seed: int = 0) -> nn.Module:
    """Build a family's preset with random weights, in eval mode and without gradients; see `family_target`."""
    if preset not in family.presets:
        raise ValueError(f"unknown preset '{preset}': choose from {', '.join(family.presets)}")
    fields = family.presets[preset]
    dtype = dtype or (torch.bfloat16 if preset == "full" else torch.float32)
    on_cuda = [torch.device(device)] if device.startswith("cuda") else []
    with quiet():
        check_memory(lambda: family.build(fields, dtype), device, f"--family {family.name}")
        with torch.device(device), torch.random.fork_rng(devices=on_cuda):
            torch.manual_seed(seed)
            model = family.build(fields, dtype)
    return model.eval().requires_grad_(False)


def _load(family: Family, folder: Path, device: str, dtype: torch.dtype | None) -> tuple[nn.Module, dict[str, Any]]:
    """Load a checkpoint's folder, and return the model with the facts of its weights."""
    if family.model_type is None:
        raise ValueError(
            f"--checkpoint: {family.name} is put together from the talker and {family.codec}, which no one folder has "
            "alone; use --preset"
        )
    config = read_config(folder)
    if config.model_type != family.model_type:
        raise ValueError(f"{folder}: is a {config.model_type!r}, not a {family.model_type!r}; see --family")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: has no safetensors; pickles are never opened, so convert it first")
    built = build(config, folder, device, dtype)
    note = {"weights_note": built.note} if built.note else {}
    return built.model, {"weights": built.weights, "files_read": ["config.json", *built.files], **note}
