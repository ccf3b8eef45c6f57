"""Files of thinker outputs, which `talkerviz capture` writes and `--inputs` reads.

They are safetensors files of exactly these tensors. W is the thinker's hidden size, P the number of the user's tokens,
T that of the answer's tokens, F one of F32, BF16 and F16.

| tensor | shape | dtype | |
| --- | --- | --- | --- |
| `special` | 1, 3, W | F | embeddings of tts_bos, tts_eos and tts_pad |
| `user` | 1, P, W | F | embeddings of the user's tokens, of audio and images the encoders' outputs |
| `user_hidden` | 1, P, W | F | hidden states of the same tokens at layer `accept_hidden_layer` |
| `user_ids` | 1, P | I64 | their token ids |
| `multimodal` | 1, P | BOOL | True for tokens of audio, image or video |
| `positions` | 3, 1, P | I64 | their positions in time, height and width, as the talker counts them |
| `assistant` | 1, T, W | F | embeddings of the answer's tokens, the three of the role first |
| `assistant_ids` | 1, T | I64 | their token ids |

The user's tokens are those of all turns of the user, from `<|im_start|>` to the line break after `<|im_end|>`. The
answer's last token, `<|im_end|>` or the one at which it was cut, is left out: the thinker generates it without reading
it. The file's metadata is for people, and is not read.
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
# Shape and dtypes; a letter is the same size in all shapes.
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
# One token of the user; of the answer the three of the role and one to speak.
_MIN_TOKENS = {"P": 1, "T": 4}


def write_inputs(
    path: Path, thinker: ThinkerOutputs, user_ids: Tensor, assistant_ids: Tensor, metadata: Mapping[str, str]
) -> None:
    """Write a file that `read_inputs` reads, with the token ids [1, P] and [1, T]."""
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
    """Read a file of thinker outputs for a talker, its embeddings on the given device and in the given dtype.

    Raises:
        ValueError: it is not such a file, or of a thinker with another hidden size than the talker takes.
    """
    tensors = _read_tensors(path, {"W": config.thinker_hidden_size})
    for name, (_, dtypes) in _TENSORS.items():
        if dtypes == _EMBEDDINGS and not tensors[name].isfinite().all():
            raise ValueError(f"{path}: tensor '{name}' has NaN or infinite values")
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
    """Read all tensors after a check of their names, shapes and dtypes; `sizes` has the letters known beforehand."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            if missing := [name for name in _TENSORS if name not in names]:
                raise ValueError(f"{path}: has no tensor '{missing[0]}'; write the file with `talkerviz capture`")
            if unknown := sorted(names - set(_TENSORS)):
                raise ValueError(f"{path}: tensor '{unknown[0]}' is not one of {', '.join(_TENSORS)}")
            for name in _TENSORS:
                tensor = file.get_slice(name)
                _check(path, name, list(tensor.get_shape()), str(tensor.get_dtype()), sizes)
            return {name: file.get_tensor(name) for name in _TENSORS}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error


def _check(path: Path, name: str, shape: list[int], dtype: str, sizes: dict[str, int]) -> None:
    """Check a tensor against the format; add letters seen first to `sizes`.

    Raises:
        ValueError: its dtype or shape is wrong.
    """
    wanted, dtypes = _TENSORS[name]
    where = f"{path}: tensor '{name}'"
    if dtype not in dtypes:
        raise ValueError(f"{where} is {dtype}, not {' or '.join(dtypes)}")
    if len(shape) != len(wanted):
        raise ValueError(f"{where} has shape {shape}, not {_shape_text(wanted, sizes)}")
    for size, expected in zip(shape, wanted, strict=True):
        if isinstance(expected, str) and size < _MIN_TOKENS.get(expected, 0):
            raise ValueError(f"{where} has {size} tokens: {_MIN_TOKENS[expected]} or more are needed")
        known = sizes.setdefault(expected, size) if isinstance(expected, str) else expected
        if size != known and expected == "W":
            raise ValueError(f"{where} is {size} wide: this talker's thinker is {known} wide")
        if size != known:
            raise ValueError(f"{where} has shape {shape}, not {_shape_text(wanted, sizes)}")


def _shape_text(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> str:
    return f"[{', '.join(str(sizes.get(size, size) if isinstance(size, str) else size) for size in shape)}]"
