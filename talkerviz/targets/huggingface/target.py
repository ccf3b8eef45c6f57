"""A transformers model built from its config, as a target."""

from __future__ import annotations

from pathlib import Path

import torch

from talkerviz.targets.huggingface.from_config import build, one_line, read_config
from talkerviz.targets.huggingface.model_spec import PROMPT_TOKENS
from talkerviz.targets.huggingface.runner import runner
from talkerviz.targets.target import Target

DEFAULT_NEW_TOKENS = 8
MAX_BATCH = 4096  # sequences; each is drawn by itself


def config_target(
    path: Path,
    device: str,
    dtype: torch.dtype | None,
    max_new_tokens: int | None = None,
    prompt_tokens: int | None = None,
    batch: int = 1,
    seed: int = 0,
) -> Target:
    """Build a transformers model from its config, and inputs on which it generates or makes one forward pass.

    Args:
        path: a folder whose safetensors are loaded if it has any, or a config file. Weights are random otherwise.
        device: device to run on; on meta one forward pass.
        dtype: data type of the weights; by default the config's, else float32.
        max_new_tokens: number of tokens to generate per sequence, if it generates; 8 by default.
        prompt_tokens: length of the prompt in tokens, if it takes text; 12 by default.
        batch: number of sequences.
        seed: random seed for weights and inputs.

    Raises:
        ValueError: no config of a model that transformers has, weights that do not fit it, or no inputs that it
            runs on.
    """
    sizes = {"max_new_tokens": max_new_tokens, "prompt_tokens": prompt_tokens, "batch": batch}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    if batch > MAX_BATCH:
        raise ValueError(f"batch must be at most {MAX_BATCH}, not {batch}")
    config = read_config(path)
    if config.model_type == "qwen3_omni_moe":
        raise ValueError(f"{path}: a whole Qwen3-Omni; its talker is traced by `talkerviz trace --checkpoint {path}`")
    folder = path if path.is_dir() and device != "meta" else None
    file = path / "config.json" if path.is_dir() else path
    built = build(config, folder, device, dtype, seed, str(file))
    try:
        runs = runner(
            built.model,
            max_new_tokens or DEFAULT_NEW_TOKENS,
            seed,
            generates=device != "meta",
            prompt_tokens=prompt_tokens or PROMPT_TOKENS,
            batch=batch,
        )
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
