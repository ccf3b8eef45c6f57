"""A Hugging Face model, built from its config, as a target."""

from __future__ import annotations

from pathlib import Path

import torch

from talkerviz.targets.huggingface.from_config import build, one_line, read_config
from talkerviz.targets.huggingface.runner import runner
from talkerviz.targets.target import Target


def is_config(target: str) -> bool:
    """Return True if a target is a folder or a config file, not the name of a function."""
    return Path(target).is_dir() or target.endswith(".json")


def config_target(path: Path, device: str, dtype: torch.dtype | None, tokens: int, seed: int = 0) -> Target:
    """Make a target that generates with a model, or runs one forward pass, on generated inputs.

    Args:
        path: config file, or folder with one; safetensors in the folder are loaded, else weights are random.
        device: device of the weights; on meta one forward pass.
        dtype: dtype of the weights; by default the config's, else float32.
        tokens: number of tokens to generate.
        seed: random seed for weights and inputs.

    Raises:
        ValueError: it is not a config of a model in transformers, the weights do not fit it, or no inputs are found
            that it runs on.
    """
    if tokens < 1:
        raise ValueError(f"frames must be at least 1, not {tokens}")
    config = read_config(path)
    if config.model_type == "qwen3_omni_moe":
        raise ValueError(f"{path}: a whole Qwen3-Omni; its talker is traced by `talkerviz trace --checkpoint {path}`")
    folder = path if path.is_dir() and device != "meta" else None
    file = path / "config.json" if path.is_dir() else path
    built = build(config, folder, device, dtype, seed, str(file))
    try:
        runs = runner(built.model, tokens, seed, generates=device != "meta")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except Exception as error:  # from generating inputs of the config's sizes
        raise ValueError(f"{file}: no inputs for it: {one_line(error)}") from error
    return Target(
        name="model",
        model=built.model,
        run=lambda on_frame: runs.run(),
        facts={
            "target": str(path),
            "weights": built.weights,
            "files_read": [file.name, *built.files],
            "runs": "generate" if runs.generates else "forward",
            "inputs": runs.shapes(),
            **({"seed": seed} if built.weights == "random" else {}),
            **({"weights_note": built.note} if built.note else {}),
        },
    )
