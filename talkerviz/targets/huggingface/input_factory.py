"""Candidate inputs for a Hugging Face model, from its config and the argument names of its `forward`.

Only its name identifies an argument, and a name has several layouts: the mel bins of `input_features` are first in one
model and last in another. So there are several candidates, the likeliest first, and the first that runs is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from talkerviz.targets.huggingface.modality_inputs import (
    ROWS,
    SERIES,
    boxes,
    first_tokens,
    grid,
    mel_bins,
    patches,
    pictures,
    safe_tokens,
    spectra,
    videos,
    waves,
    with_placeholders,
)
from talkerviz.targets.huggingface.model_spec import Inputs, ModelSpec
from talkerviz.targets.huggingface.special_inputs import SPECIAL_INPUTS

_MAX_CANDIDATES = 40  # combinations of layouts for one set of arguments

_FACTORIES: dict[str, Callable[[ModelSpec], list[Any]]] = {
    "input_ids": lambda spec: [safe_tokens(spec)],
    "decoder_input_ids": lambda spec: [first_tokens(spec)],
    "bbox": lambda spec: [boxes(spec), boxes(spec) / 1000],
    "qformer_input_ids": lambda spec: [safe_tokens(spec, kinds="qformer")],
    "pixel_values": pictures,
    "pixel_values_videos": videos,
    "hidden_states": lambda spec: [
        patches(spec) if "grid_thw" in spec.names else spec.normal(1, spec.prompt_tokens, spec.config.hidden_size)
    ],
    "grid_thw": lambda spec: [grid(spec)],
    "image_grid_thw": lambda spec: [grid(spec)],
    "image_sizes": lambda spec: [None, torch.tensor([pictures(spec)[0].shape[-2:]])],
    "spatial_shapes": lambda spec: [torch.tensor([[ROWS, ROWS]])],
    "input_features": spectra,
    "input_values": waves,
    **SERIES,
}
# Arguments that go with a main input if the model takes them.
_COMPANIONS = {
    "pixel_values": ("image_grid_thw", "grid_thw", "image_sizes", "spatial_shapes"),
    "input_ids": ("bbox",),
    "hidden_states": ("grid_thw",),
}
_MEDIA = {"image": ("pixel_values", "get_image_features"), "audio": ("input_features", "get_audio_features")}


def candidate_inputs(spec: ModelSpec) -> Iterator[Inputs]:
    """Yield inputs that the model may run on, the likeliest first.

    Raises:
        ValueError: it requires an argument that has no factory.
    """
    if spec.config.model_type in SPECIAL_INPUTS:
        yield from SPECIAL_INPUTS[spec.config.model_type](spec)
    unknown = sorted(name for name in spec.required if name not in _FACTORIES and not name.endswith("_mask"))
    if unknown:
        raise ValueError(f"its inputs {', '.join(unknown)} cannot be generated; give a function as the target")
    main: Any = spec.model.main_input_name
    least = spec.required | {main} if isinstance(main, str) else spec.required | set(main)
    shown = {name for name in ("pixel_values", "input_features", "input_values") if name in spec.names}
    if "input_ids" in spec.names and shown:
        yield from _with_media(spec)
        yield from _combinations(spec, least | shown | {"input_ids"})
    yield from _combinations(spec, least)
    if "input_ids" in spec.names:
        yield from _combinations(spec, least | {"input_ids"})
        yield from _combinations(spec, spec.required | {"input_ids"})


def _combinations(spec: ModelSpec, wanted: set[str] | frozenset[str]) -> Iterator[Inputs]:
    """Yield combinations of layouts of these arguments and their companions; an argument that is None is left out."""
    wanted = set(wanted) & spec.names
    if "decoder_input_ids" in spec.names:
        wanted.add("decoder_input_ids")
    for name in list(wanted):
        wanted |= set(_COMPANIONS.get(name, ())) & spec.names
    layouts = {name: _FACTORIES[name](spec) for name in sorted(wanted) if name in _FACTORIES}
    for choice in itertools.islice(itertools.product(*layouts.values()), _MAX_CANDIDATES):
        yield _with_masks(spec, {name: value for name, value in zip(layouts, choice, strict=True) if value is not None})


def _with_masks(spec: ModelSpec, inputs: Inputs) -> Inputs:
    """Add the masks that some models require, all ones."""
    masks: Inputs = {}
    # On meta a model cannot read a mask to see that it is all ones, and fails.
    if (
        "input_ids" in inputs
        and "attention_mask" in spec.names
        and not any(parameter.is_meta for parameter in spec.model.parameters())
    ):
        masks["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "qformer_input_ids" in inputs:
        masks["qformer_attention_mask"] = torch.ones_like(inputs["qformer_input_ids"])
    if "spatial_shapes" in inputs and "pixel_attention_mask" in spec.names:
        masks["pixel_attention_mask"] = torch.ones(inputs["pixel_values"].shape[:2], dtype=torch.long)
    features = inputs.get("input_features")
    if features is not None and features.ndim == 3:
        length = next((size for size in features.shape[1:] if size != mel_bins(spec)), features.shape[-1])
        for name in ("input_features_mask", "feature_attention_mask"):
            if name in spec.names:
                masks[name] = torch.ones(1, length, dtype=torch.long)
    return {**inputs, **masks}


def _with_media(spec: ModelSpec) -> Iterator[Inputs]:
    """Yield texts with an image or audio, with as many placeholder tokens as the model's encoder has outputs."""
    for kind, (argument, encode) in _MEDIA.items():
        token = spec.field("", f"{kind}_token_id", f"{kind}_token_index")
        encoder = getattr(spec.model, encode, None)
        if argument not in spec.names or not isinstance(token, int) or encoder is None:
            continue
        for inputs in _combinations(spec, {argument}):
            beside = {
                name: value
                for name, value in inputs.items()
                if name not in ("input_ids", "decoder_input_ids", "attention_mask")
            }
            try:
                with torch.no_grad():
                    count = _vector_count(encoder(**on_device(spec, beside)))
            except Exception:  # another layout, or other arguments
                continue
            tokens = with_placeholders(safe_tokens(spec), token, count)
            types = (tokens == token).long() if "mm_token_type_ids" in spec.names else None
            text_inputs = {**inputs, "input_ids": tokens} | ({} if types is None else {"mm_token_type_ids": types})
            yield _with_masks(spec, text_inputs)


def _vector_count(encoded: Any) -> int:
    """Count the vectors of an encoder's output."""
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(encoded, name, None) is not None:
            encoded = getattr(encoded, name)
            break
    if isinstance(encoded, Tensor):
        return encoded.numel() // encoded.shape[-1]
    return sum(_vector_count(part) for part in encoded if part is not None)


def on_device(spec: ModelSpec, inputs: Inputs) -> Inputs:
    """Move inputs to the model's device, floats to the dtype of its weights."""
    weight = next((p for p in spec.model.parameters() if p.is_floating_point()), torch.empty(0))

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, list):
            return [moved(item) for item in value]
        return value

    return {name: moved(value) for name, value in inputs.items()}
