"""Index of a Qwen3-Omni checkpoint: its config, and the file, offset, dtype and shape of each tensor.

No weights are read here. A safetensors file is a length (8 bytes, little endian), a JSON header with the dtype, shape
and offsets of each tensor, and the tensors' bytes: https://huggingface.co/docs/safetensors. The header is parsed here
and not by the library, which maps whole files into memory and does not name the tensor that is cut off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talkerviz.talker.files.fp8 import attach_scales, is_scale
from talkerviz.talker.files.stored import StoredModule, StoredTensor, first_names
from talkerviz.talker.model.code2wav_config import Code2WavConfig, code2wav_config_from
from talkerviz.talker.model.config import TalkerConfig

MODEL_TYPE = "qwen3_omni_moe"

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}
_SCALE_DTYPES = {**_DTYPES, "F8_E8M0": torch.float8_e8m0fnu}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the library's limit
_MAX_JSON_BYTES = 1 << 28  # an index of 100,000 tensors has 10 MB


def read_config(directory: Path) -> dict[str, Any]:
    """Parse the config.json of a Qwen3-Omni checkpoint.

    Raises:
        ValueError: there is none, or it is of another model.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such folder; give a Qwen3-Omni's, with config.json and safetensors")
    file = directory / "config.json"
    config = _read_json(file)
    if config.get("model_type") != MODEL_TYPE:
        raise ValueError(f"{file}: model_type is {config.get('model_type')!r}: only '{MODEL_TYPE}' can be loaded")
    return config


def read_talker_config(directory: Path) -> TalkerConfig:
    """Read the talker's config from a Qwen3-Omni checkpoint.

    Raises:
        ValueError: as `read_config`, or the talker has settings that are not implemented.
    """
    config = read_config(directory)
    try:
        return TalkerConfig.from_dict(config)
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from error


def read_code2wav_config(directory: Path) -> Code2WavConfig:
    """Read the config of a checkpoint's code2wav, from key `code2wav_config` of its config.json.

    Raises:
        ValueError: as `read_config`, or a key is missing or has a value that cannot be run.
    """
    config = read_config(directory)
    try:
        section = config.get("code2wav_config")
        if not isinstance(section, Mapping):
            raise ValueError(f"config key 'code2wav_config' is {section!r}: is it a model with speech?")
        return code2wav_config_from(section)
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from error


def find_module(directory: Path, prefix: str) -> StoredModule:
    """Find the tensors whose names begin with a prefix; only the headers of their files are read.

    Raises:
        ValueError: there are none, or a file or tensor is missing, damaged, cut off, or has a dtype other than float32,
            bfloat16, float16 and float8_e4m3fn with scales.
    """
    file_of = _find_files(directory, prefix)
    files = sorted(set(file_of.values()))
    absent = [file for file in files if not file.is_file()]
    if absent:
        lost = first_names(repr(name) for name, file in file_of.items() if file in absent)
        raise ValueError(f"{first_names(map(str, absent))}: no such file, and by {_INDEX} it has {lost}: download it")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        header = _Header.read(file)
        names = [name for name, its_file in file_of.items() if its_file == file]
        if lost := first_names(repr(name) for name in names if name not in header.entries):
            raise ValueError(f"{file}: has no {lost}, which by {_INDEX} it has: download both again")
        entries = {name: header.entries[name] for name in names}
        if odd := first_names(
            f"{name!r} ({entry['dtype']})"
            for name, entry in entries.items()
            if entry["dtype"] not in (_SCALE_DTYPES if is_scale(name) else _DTYPES)
        ):
            raise ValueError(f"{file}: only {', '.join(_DTYPES)} can be loaded, and not {odd}")
        stored = {name: header.tensor(name) for name in names}
        if cut := first_names(
            repr(name) for name, tensor in stored.items() if tensor.offset + tensor.nbytes > header.file_bytes
        ):
            raise ValueError(f"{file}: ends at byte {header.file_bytes:,}, before {cut} does: download it again")
        tensors |= stored
    tensors = attach_scales(directory, tensors, _block_size(directory))
    return StoredModule(directory, prefix, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})


def _block_size(directory: Path) -> tuple[int, int] | None:
    """Return the rows and columns of a block of a quantised weight by config.json; None if it does not say.

    Raises:
        ValueError: config.json has something else in their place.
    """
    file = directory / "config.json"
    settings = _read_json(file).get("quantization_config") if file.is_file() else None
    block = settings.get("weight_block_size") if isinstance(settings, Mapping) else None
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise ValueError(f"{file}: config key 'quantization_config.weight_block_size' is {block!r}: it has two sizes")
    return block[0], block[1]


def weight_files(directory: Path) -> list[Path]:
    """List the files with a model's weights: the index, if there is one, and the safetensors files.

    No weights are read, and only safetensors files are opened.

    Raises:
        ValueError: there are none, one is missing or damaged, or the index names a file that is not a safetensors file
            or not in the folder itself.
    """
    single, index = directory / _SINGLE, directory / _INDEX
    if single.is_file():
        files = [single]
    elif index.is_file():
        files = sorted(set(_indexed_files(index).values()))
    else:
        raise ValueError(f"{directory}: has neither {_SINGLE} nor {_INDEX}")
    if absent := first_names(str(file) for file in files if not file.is_file()):
        raise ValueError(f"{absent}: no such file, though {_INDEX} names it: download it")
    for file in files:
        _Header.read(file)
    return files if single.is_file() else [index, *files]


def _indexed_files(index: Path) -> dict[str, Path]:
    """Return the file of each tensor, from the index."""
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: 'weight_map' does not have the file of each tensor: download it again")
    for tensor, name in names.items():
        if not _is_file_name(name):
            raise ValueError(f"{index}: 'weight_map' leads out of the folder for {tensor!r}: {name!r}; nothing is read")
        if not name.endswith(".safetensors"):
            raise ValueError(
                f"{index}: 'weight_map' names {name!r} for {tensor!r}, which is no safetensors file; pickles are never "
                "opened"
            )
    return {tensor: index.parent / name for tensor, name in names.items()}


def _find_files(directory: Path, prefix: str) -> dict[str, Path]:
    """Return the file of each tensor whose name begins with the prefix, from the index if there is one."""
    single, index = directory / _SINGLE, directory / _INDEX
    if single.is_file():
        files = dict.fromkeys(_Header.read(single).entries, single)
    elif index.is_file():
        files = _indexed_files(index)
    elif any(directory.glob("*.bin")):
        raise ValueError(f"{directory}: has no safetensors but pickled weights, which are never opened: convert them")
    else:
        raise ValueError(f"{directory}: has neither {_SINGLE} nor {_INDEX}")
    selected = {name: file for name, file in files.items() if name.startswith(prefix)}
    if not selected:
        raise ValueError(f"{directory}: has no tensors '{prefix}*': is it a model with speech?")
    return selected


def _is_file_name(value: Any) -> bool:
    """Return True for the name of a file in the same folder."""
    return isinstance(value, str) and value not in ("", ".", "..") and not {"/", "\\", "\0"} & set(value)


@dataclass(frozen=True)
class _Header:
    """Header of a safetensors file.

    Attributes:
        file: the file.
        entries: the header's entry for each tensor.
        data_offset: position of the first tensor's bytes in the file.
        file_bytes: size of the file.
    """

    file: Path
    entries: Mapping[str, Mapping[str, Any]]
    data_offset: int
    file_bytes: int

    @classmethod
    def read(cls, file: Path) -> _Header:
        with file.open("rb") as source:
            start = source.read(8)
            length = int.from_bytes(start, "little")
            text = source.read(length) if length <= _MAX_HEADER_BYTES else b""
        if start == b"version ":
            raise ValueError(f"{file}: is a Git LFS pointer: `git lfs pull` brings the weights themselves")
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError):
            entries = None
        if not isinstance(entries, dict):
            raise ValueError(f"{file}: its header cannot be read: it is no safetensors file, or damaged")
        entries.pop("__metadata__", None)
        if damaged := first_names(repr(name) for name, entry in entries.items() if not _is_entry(entry)):
            raise ValueError(f"{file}: its header is damaged at {damaged}: download it again")
        if overlap := _find_overlap(entries):
            raise ValueError(f"{file}: its header is damaged: {overlap} overlap: download it again")
        return cls(file, entries, 8 + length, file.stat().st_size)

    def tensor(self, name: str) -> StoredTensor:
        entry = self.entries[name]
        dtype, shape, (begin, end) = _SCALE_DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"{self.file}: its header is damaged: {name!r} has {end - begin:,} bytes, too few or too many for "
                f"{list(shape)} of {entry['dtype']}: download it again"
            )
        return StoredTensor(self.file, name, dtype, shape, self.data_offset + begin)


def _find_overlap(entries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name two tensors of a header that share bytes; None if there are none."""
    last_name, last_end = "", 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin < last_end and begin < end:
            return f"{last_name!r} and {name!r}"
        if end > last_end:
            last_name, last_end = name, end
    return None


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    return (
        isinstance(entry.get("dtype"), str)
        and isinstance(shape, list)
        and isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(number) is int and number >= 0 for number in (*shape, *offsets))
    )


def read_json(path: Path, hint: str = "") -> Any:
    """Parse a JSON file.

    Args:
        path: the file.
        hint: text for the end of the error for a missing file.

    Raises:
        ValueError: it is missing, too large, or not JSON.
    """
    try:
        if (size := path.stat().st_size) > _MAX_JSON_BYTES:
            raise ValueError(f"it has {size:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file{hint}") from None
    except RecursionError:
        raise ValueError(f"{path}: is no JSON: nested too deeply") from None
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    parsed = read_json(file, "; a Qwen3-Omni checkpoint has it")
    if not isinstance(parsed, dict):
        raise ValueError(f"{file}: is no JSON object")
    return parsed
