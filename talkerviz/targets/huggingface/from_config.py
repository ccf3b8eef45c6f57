"""Models of transformers built from a `config.json`, with a folder's safetensors or random weights.

Only JSON and safetensors are read: a checkpoint's own code is never run, pickles are never opened, and nothing is
downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talkerviz.talker.files.checkpoint import read_json, weight_files
from talkerviz.targets.huggingface.config_check import check_memory, checked_fields
from talkerviz.targets.huggingface.model_spec import parts_of
from talkerviz.targets.huggingface.quiet_transformers import quiet

# Tasks whose model class is preferred if a config names none: those that generate.
_GENERATES = (
    "MULTIMODAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "SPEECH_SEQ_2_SEQ",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "TEXT_TO_WAVEFORM",
    "TEXT_TO_SPECTROGRAM",
    "CAUSAL_LM",
)


@dataclass(frozen=True)
class Built:
    """A model built from a config.

    Attributes:
        model: the model, in eval mode and without gradients.
        weights: `random` or `safetensors`.
        note: warning about the weights, or empty.
        files: names of the files that weights were read from.
    """

    model: nn.Module
    weights: str
    note: str
    files: tuple[str, ...] = ()


def read_config(path: Path) -> Any:
    """Read a config file, or a folder's `config.json`.

    Returns:
        transformers' `PreTrainedConfig` of the model.

    Raises:
        ValueError: there is none, or transformers does not have the model.
    """
    file = path / "config.json" if path.is_dir() else path
    if file.is_dir():
        raise ValueError(f"{file}: is a directory")
    if not file.is_file():
        raise ValueError(f"{path}: there is no config.json in it" if path.is_dir() else f"{path}: no such file")
    if (file.parent / "adapter_config.json").is_file():
        raise ValueError(f"{file.parent}: is an adapter; give the folder of its base model")
    fields = read_json(file)
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: a config is a JSON object, not a {type(fields).__name__}")
    return config_from(fields, str(file))


def config_from(fields: dict[str, Any], source: str) -> Any:
    """Make a config from the fields of a parsed `config.json`; see `read_config`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = checked_fields(fields, source)
    if fields.get("architectures") and not _named_classes(fields):
        raise ValueError(f"{source}: architectures: transformers has no model {', '.join(fields['architectures'])}")
    kind = fields.get("model_type") or next((cls.config_class.model_type for cls in _named_classes(fields)), None)
    if kind is not None and not isinstance(kind, str):
        raise ValueError(f"{source}: model_type is {kind!r}, not a name")
    if kind is None:
        raise ValueError(f"{source}: it has neither model_type nor architectures, so its model is unknown")
    if kind not in CONFIG_MAPPING:
        own_code = " and the code that comes with it (auto_map) is never run" if fields.get("auto_map") else ""
        raise ValueError(f"{source}: transformers has no model_type {kind!r}{own_code and ','}{own_code}")
    # This is transformers' own class, whatever code came with the checkpoint.
    try:
        with quiet():
            return CONFIG_MAPPING[kind].from_dict(known)
    except Exception as error:  # strict dataclasses raise their own classes
        raise ValueError(f"{source}: no config of {kind}: {one_line(error)}") from error


def model_class(config: Any) -> Any:
    """Return the model class of a config: the one it names, else one that generates, else the base model.

    Raises:
        ValueError: transformers has none for it.
    """
    from transformers.models.auto import modeling_auto

    for named in _named_classes({"architectures": config.architectures}):
        return named
    kind = type(config)
    mappings = {name: getattr(modeling_auto, name) for name in dir(modeling_auto) if name.endswith("_MAPPING")}
    heads = {name: mapping for name, mapping in mappings.items() if isinstance(mapping, modeling_auto._LazyAutoMapping)}
    # Masked language models generate only if they are configured as decoders.
    is_encoder = kind in heads["MODEL_FOR_MASKED_LM_MAPPING"] and not (config.is_decoder or config.is_encoder_decoder)
    first = [] if is_encoder else [f"MODEL_FOR_{name}_MAPPING" for name in _GENERATES]
    for name in [*first, "MODEL_MAPPING", *heads]:
        if name in heads and kind in heads[name]:
            cls = heads[name][kind]
            return cls[0] if isinstance(cls, tuple) else cls
    raise ValueError(f"model_type {config.model_type!r}: part of other models; transformers builds none of it alone")


def build(
    config: Any,
    folder: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    source: str = "",
) -> Built:
    """Build the model of a config.

    Args:
        config: config from `read_config`.
        folder: folder whose safetensors are loaded if it has any; else weights are random.
        device: device of the weights.
        dtype: dtype of the weights; by default the config's, else float32.
        seed: random seed of the weights.
        source: the config's file, for messages.

    Raises:
        ValueError: transformers cannot build it, for lack of a class, a package or weights.
    """
    source = source or str(folder or "config")
    try:
        cls = model_class(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    # The class may be for a part of the config, such as the text model of a multimodal one.
    if not isinstance(config, cls.config_class):
        config = next((part for part in parts_of(config) if isinstance(part, cls.config_class)), config)
    dtype = dtype or config.dtype or torch.float32
    stored = folder is not None and any(folder.glob("*.safetensors"))
    files: list[Path] = []
    note = ""
    if folder is not None and stored:
        files = weight_files(folder)
        if (settings := folder / "generation_config.json").is_file():
            if not isinstance(read_json(settings), dict):
                raise ValueError(f"{settings}: is no JSON object")
            files.append(settings)
    if getattr(config, "quantization_config", None) is None:
        with quiet():
            check_memory(lambda: cls._from_config(config, dtype=dtype), device, source)
    try:
        with quiet():
            if stored:
                model, loaded = cls.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
                model = model.to(device)
                if missing := sorted(loaded["missing_keys"]):
                    note = f"{len(missing)} weights are not in {folder} and are random, such as {missing[0]}"
            else:
                on_cuda = [torch.device(device)] if device.startswith("cuda") else []
                with torch.device(device), torch.random.fork_rng(devices=on_cuda):
                    torch.manual_seed(seed)
                    model = cls._from_config(config, dtype=dtype)
                if folder is not None and any([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
                    note = f"weights are random: {folder} has pickles, which are never opened"
    except Exception as error:
        raise ValueError(f"{source}: {cls.__name__} cannot be built: {one_line(error)}") from error
    names = tuple(file.name for file in files)
    return Built(model.eval().requires_grad_(False), "safetensors" if stored else "random", note, names)


_MAX_REASON_CHARS = 400  # validators list every value that a field can have


def one_line(error: BaseException) -> str:
    """Format an exception in one line, with its class unless that is a ValueError, OSError or ImportError."""
    text = " ".join(str(error).split())
    if len(text) > _MAX_REASON_CHARS:
        half = _MAX_REASON_CHARS // 2
        text = f"{text[:half]}…{text[1 - half :]}"
    return text if isinstance(error, (ValueError, OSError, ImportError)) and text else f"{type(error).__name__}: {text}"


def _named_classes(fields: dict[str, Any]) -> list[Any]:
    import transformers

    names = fields.get("architectures") or []
    named = [getattr(transformers, name, None) for name in names if isinstance(name, str)]
    models = [cls for cls in named if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)]
    return [cls for cls in models if getattr(cls, "config_class", None) is not None]
