"""Thinker outputs in a file: what `talkerviz capture` writes and `--inputs` reads.

A safetensors file of these tensors and no others. W is the thinker's width, P the number of the user's tokens, T that
of the answer's tokens, F one of F32, BF16 and F16.

| tensor | shape | dtype | |
| --- | --- | --- | --- |
| `special` | 1, 3, W | F | embeddings of tts_bos, tts_eos and tts_pad |
| `user` | 1, P, W | F | embeddings of the user's tokens, of audio and images what their encoders made of them |
| `user_hidden` | 1, P, W | F | hidden states of the same tokens at layer `accept_hidden_layer` |
| `user_ids` | 1, P | I64 | their token ids |
| `multimodal` | 1, P | BOOL | which of them are audio, image or video |
| `positions` | 3, 1, P | I64 | their positions in time, height and width, as the talker counts them |
| `assistant` | 1, T, W | F | embeddings of the answer's tokens, the three of the role first |
| `assistant_ids` | 1, T | I64 | their token ids |

The user's tokens are those of all turns of the user, from `<|im_start|>` to the line break after `<|im_end|>`. The
answer is without its last token, `<|im_end|>` or where it was cut: the thinker says that one and does not read it. The
file's metadata tells people what it is of, and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from talkerviz.atomic_file import write_bytes
from talkerviz.talker.generation.prompt import ThinkerOutputs
from talkerviz.talker.model.config import TalkerConfig

_EMBEDDINGS = ("F32", "BF16", "F16")
_IDS = ("I64",)
# A size is a number, or a letter for one that is the same wherever it stands.
_TENSORS: dict[str, tuple[tuple[int | str, ...], tuple[str, ...]]] = {
    "special": ((1, 3, "W"), _EMBEDDINGS),
    "user": ((1, "P", "W"), _EMBEDDINGS),
    "user_hidden": ((1, "P", "W"), _EMBEDDINGS),
    "user_ids": ((1, "P"), _IDS),
    "multimodal": ((1, "P"), ("BOOL",)),
    "positions": ((3, 1, "P"), _IDS),
    "assistant": ((1, "T", "W"), _EMBEDDINGS),
    "assistant_ids": ((1, "T"), _IDS),
}
# One of the user; of the answer the three of the role and one to speak.
_LEAST = {"P": 1, "T": 4}


def write_inputs(
    path: Path, thinker: ThinkerOutputs, user_ids: Tensor, assistant_ids: Tensor, metadata: Mapping[str, str]
) -> None:
    """Write what `read_inputs` reads, with the token ids [1, P] and [1, T]."""
    positions = thinker.positions
    if positions is None:
        positions = torch.arange(thinker.user.shape[1]).expand(3, 1, -1)
    tensors = {
        "special": thinker.special,
        "user": thinker.user,
        "user_hidden": thinker.user_hidden,
        "user_ids": user_ids,
        "multimodal": thinker.multimodal,
        "positions": positions,
        "assistant": thinker.assistant,
        "assistant_ids": assistant_ids,
    }
    # Copies, since safetensors refuses tensors that share their memory.
    copies = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(copies, dict(metadata)))


def read_inputs(path: Path, config: TalkerConfig, device: str | torch.device, dtype: torch.dtype) -> ThinkerOutputs:
    """Read a file of the format above for a talker, its embeddings moved to where and what its weights are.

    Raises:
        ValueError: it is no such file, or of a thinker that is not as wide as the talker takes.
    """
    tensors = _read_tensors(path, {"W": config.thinker_hidden_size})
    for name, (_, dtypes) in _TENSORS.items():
        if dtypes == _EMBEDDINGS and not tensors[name].isfinite().all():
            raise ValueError(f"{path}: tensor '{name}' has values that are not finite numbers")
        if dtypes == _IDS and (tensors[name] < 0).any():
            raise ValueError(f"{path}: tensor '{name}' has values below 0")
    return ThinkerOutputs(
        special=tensors["special"].to(device, dtype),
        user=tensors["user"].to(device, dtype),
        user_hidden=tensors["user_hidden"].to(device, dtype),
        multimodal=tensors["multimodal"],
        assistant=tensors["assistant"].to(device, dtype),
        positions=tensors["positions"].to(device),
    )


def _read_tensors(path: Path, sizes: dict[str, int]) -> dict[str, Tensor]:
    """All tensors, once their names, shapes and dtypes are found to be right; `sizes` are those known beforehand."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            if missing := [name for name in _TENSORS if name not in names]:
                raise ValueError(f"{path}: has no tensor '{missing[0]}'; `talkerviz capture` writes files that have")
            if unknown := sorted(names - set(_TENSORS)):
                raise ValueError(f"{path}: tensor '{unknown[0]}' is none of {', '.join(_TENSORS)}")
            for name in _TENSORS:
                found = file.get_slice(name)
                _check(path, name, list(found.get_shape()), str(found.get_dtype()), sizes)
            return {name: file.get_tensor(name) for name in _TENSORS}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error


def _check(path: Path, name: str, shape: list[int], dtype: str, sizes: dict[str, int]) -> None:
    """Raise ValueError unless a tensor is as the format has it; note in `sizes` what it is the first to say."""
    wanted, dtypes = _TENSORS[name]
    where = f"{path}: tensor '{name}'"
    if dtype not in dtypes:
        raise ValueError(f"{where} is {dtype}, not {' or '.join(dtypes)}")
    if len(shape) != len(wanted):
        raise ValueError(f"{where} has shape {shape}, not {_said(wanted, sizes)}")
    for size, expected in zip(shape, wanted, strict=True):
        if isinstance(expected, str) and size < _LEAST.get(expected, 0):
            raise ValueError(f"{where} has {size} tokens: {_LEAST[expected]} or more are needed")
        known = sizes.setdefault(expected, size) if isinstance(expected, str) else expected
        if size != known and expected == "W":
            raise ValueError(f"{where} is {size} wide: this talker's thinker is {known} wide")
        if size != known:
            raise ValueError(f"{where} has shape {shape}, not {_said(wanted, sizes)}")


def _said(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> str:
    return f"[{', '.join(str(sizes.get(size, size) if isinstance(size, str) else size) for size in shape)}]"
