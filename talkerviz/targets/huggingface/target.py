"""A model of transformers, from its config, as a target."""

from __future__ import annotations

from pathlib import Path

import torch

from talkerviz.targets.huggingface.from_config import build, one_line, read_config
from talkerviz.targets.huggingface.runner import runner
from talkerviz.targets.target import Target


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
    file = path / "config.json" if path.is_dir() else path
    built = build(config, folder, device, dtype, seed, str(file))
    try:
        runs = runner(built.model, tokens, seed, generates=device != "meta")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except Exception as error:  # of making inputs of the sizes that it says
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
