"""A model of transformers from its `config.json`: which class, and with which weights.

What is read is JSON and safetensors. Code that a checkpoint brings along is not run, pickles are not opened, and
nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talkerviz.render.escape import shortened
from talkerviz.talker.files.checkpoint import read_json, weight_files
from talkerviz.targets.huggingface.config_check import check_memory, checked_fields
from talkerviz.targets.huggingface.model_spec import parts_of
from talkerviz.targets.huggingface.quiet_transformers import quiet

# What a model is for, if its config does not name a class: to generate, else what comes first.
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
    """A model that was built from a config.

    Attributes:
        model: in eval mode, without gradients.
        weights: `random`, or the folder's `safetensors`.
        note: what to know of them, or empty.
        files: the names of the files that weights were read from.
    """

    model: nn.Module
    weights: str
    note: str
    files: tuple[str, ...] = ()


def read_config(path: Path) -> Any:
    """The config in a file, or in a folder's `config.json`.

    Returns:
        transformers' `PreTrainedConfig` of that model.

    Raises:
        ValueError: there is none, or none of a model that transformers has.
    """
    file = path / "config.json" if path.is_dir() else path
    if file.is_dir():
        raise ValueError(f"{file}: a folder, not a config's file")
    if not file.is_file():
        raise ValueError(f"{path}: there is no config.json in it" if path.is_dir() else f"{path}: no such file")
    if (file.parent / "adapter_config.json").is_file():
        raise ValueError(f"{file.parent}: an adapter; give the folder of the model that it belongs to")
    fields = read_json(file)
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: a config is a JSON object, not a {type(fields).__name__}")
    return config_from(fields, str(file))


def config_from(fields: dict[str, Any], source: str) -> Any:
    """A config from its fields, as they stand in a `config.json`; see `read_config`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = checked_fields(fields, source)
    if fields.get("architectures") and not _named_classes(fields):
        raise ValueError(f"{source}: architectures: transformers has no model {', '.join(fields['architectures'])}")
    kind = fields.get("model_type") or next((made.config_class.model_type for made in _named_classes(fields)), None)
    if kind is not None and not isinstance(kind, str):
        raise ValueError(f"{source}: model_type is {kind!r}, not a name")
    if kind is None:
        raise ValueError(f"{source}: it has no model_type, so nothing says what model it is of")
    if kind not in CONFIG_MAPPING:
        own_code = " and the code that comes with it (auto_map) is never run" if fields.get("auto_map") else ""
        raise ValueError(f"{source}: transformers has no model_type {kind!r}{own_code and ','}{own_code}")
    # This one transformers has itself, whatever code came with the checkpoint.
    try:
        with quiet():
            return CONFIG_MAPPING[kind].from_dict(known)
    except Exception as error:  # a strict dataclass raises classes of its own
        raise ValueError(f"{source}: no config of {kind}: {one_line(error)}") from error


def model_class(config: Any) -> Any:
    """The class that a config is built as: the one it names, else one that generates, else the plain model.

    Raises:
        ValueError: transformers has none for it.
    """
    from transformers.models.auto import modeling_auto

    for made in _named_classes({"architectures": config.architectures}):
        return made
    kind = type(config)
    mappings = {name: getattr(modeling_auto, name) for name in dir(modeling_auto) if name.endswith("_MAPPING")}
    heads = {name: mapping for name, mapping in mappings.items() if isinstance(mapping, modeling_auto._LazyAutoMapping)}
    # What fills in blanks generates only where it was made a decoder.
    reads = kind in heads["MODEL_FOR_MASKED_LM_MAPPING"] and not (config.is_decoder or config.is_encoder_decoder)
    first = [] if reads else [f"MODEL_FOR_{name}_MAPPING" for name in _GENERATES]
    for name in [*first, "MODEL_MAPPING", *heads]:
        if name in heads and kind in heads[name]:
            found = heads[name][kind]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError(f"model_type {config.model_type!r}: part of other models; transformers builds none of it alone")


def build(
    config: Any,
    folder: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    source: str = "",
) -> Built:
    """The model of a config.

    Args:
        config: from `read_config`.
        folder: where its weights may be: safetensors there are loaded, else weights are drawn.
        device: where to.
        dtype: of the weights; by default what the config says, else float32.
        seed: of what is drawn: the same weights for a seed.
        source: the config's file, for messages.

    Raises:
        ValueError: transformers builds nothing from it, or cannot without some package or other weights.
    """
    source = source or str(folder or "config")
    try:
        made = model_class(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    # The class may be one part of the model: of what is for more than text, that for text.
    if not isinstance(config, made.config_class):
        config = next((part for part in parts_of(config) if isinstance(part, made.config_class)), config)
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
            check_memory(lambda: made._from_config(config, dtype=dtype), device, source)
    try:
        with quiet():
            if stored:
                model, loaded = made.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
                model = model.to(device)
                if missing := sorted(loaded["missing_keys"]):
                    note = (
                        f"{len(missing)} weights are not among those in {folder} and are random, such as {missing[0]}"
                    )
            else:
                on_cuda = [torch.device(device)] if device.startswith("cuda") else []
                with torch.device(device), torch.random.fork_rng(devices=on_cuda):
                    torch.manual_seed(seed)
                    model = made._from_config(config, dtype=dtype)
                if folder is not None and any([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
                    note = f"weights are random: those in {folder} are pickles, which are never opened"
    except Exception as error:
        raise ValueError(f"{source}: {made.__name__} is not built: {one_line(error)}") from error
    names = tuple(file.name for file in files)
    return Built(model.eval().requires_grad_(False), "safetensors" if stored else "random", note, names)


_LONGEST_REASON = 400  # characters; validators list all that a field could have been


def one_line(error: BaseException) -> str:
    """What went wrong, with its class where that says more."""
    text = shortened(" ".join(str(error).split()), _LONGEST_REASON)
    return text if isinstance(error, (ValueError, OSError, ImportError)) and text else f"{type(error).__name__}: {text}"


def _named_classes(fields: dict[str, Any]) -> list[Any]:
    import transformers

    names = fields.get("architectures") or []
    found = [getattr(transformers, name, None) for name in names if isinstance(name, str)]
    models = [made for made in found if isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)]
    return [made for made in models if getattr(made, "config_class", None) is not None]
