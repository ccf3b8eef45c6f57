"""Inputs of the right kind for a model of transformers, read off its config and the arguments of its `forward`.

A name is all that there is to tell what an argument is, and one name stands for several layouts: of `input_features`
the mel bins are first in one model and last in another. So there are ways to try, likeliest first, and a model gets the
first that it runs on.
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
    bins,
    boxes,
    first_tokens,
    grid,
    patches,
    pictures,
    safe_tokens,
    spectra,
    videos,
    waves,
    with_places,
)
from talkerviz.targets.huggingface.model_spec import Ask, Inputs
from talkerviz.targets.huggingface.special_inputs import PARTICULAR

_MOST_WAYS = 40

_MAKERS: dict[str, Callable[[Ask], list[Any]]] = {
    "input_ids": lambda ask: [safe_tokens(ask)],
    "decoder_input_ids": lambda ask: [first_tokens(ask)],
    "bbox": lambda ask: [boxes(ask), boxes(ask) / 1000],
    "qformer_input_ids": lambda ask: [safe_tokens(ask, kinds="qformer")],
    "pixel_values": pictures,
    "pixel_values_videos": videos,
    "hidden_states": lambda ask: [
        patches(ask) if "grid_thw" in ask.names else ask.real(1, ask.prompt_tokens, ask.config.hidden_size)
    ],
    "grid_thw": lambda ask: [grid(ask)],
    "image_grid_thw": lambda ask: [grid(ask)],
    "image_sizes": lambda ask: [None, torch.tensor([pictures(ask)[0].shape[-2:]])],
    "spatial_shapes": lambda ask: [torch.tensor([[ROWS, ROWS]])],
    "input_features": spectra,
    "input_values": waves,
    **SERIES,
}
# What is beside a main input where a model takes it.
_BESIDE = {
    "pixel_values": ("image_grid_thw", "grid_thw", "image_sizes", "spatial_shapes"),
    "input_ids": ("bbox",),
    "hidden_states": ("grid_thw",),
}
_SHOWN = {"image": ("pixel_values", "get_image_features"), "audio": ("input_features", "get_audio_features")}


def ways(ask: Ask) -> Iterator[Inputs]:
    """Inputs that the model may run on, the likeliest first.

    Raises:
        ValueError: it requires an argument that nothing is known of.
    """
    if ask.config.model_type in PARTICULAR:
        yield from PARTICULAR[ask.config.model_type](ask)
    unknown = sorted(name for name in ask.required if name not in _MAKERS and not name.endswith("_mask"))
    if unknown:
        raise ValueError(f"nothing is known of its inputs {', '.join(unknown)}")
    main: Any = ask.model.main_input_name
    least = ask.required | {main} if isinstance(main, str) else ask.required | set(main)
    shown = {name for name in ("pixel_values", "input_features", "input_values") if name in ask.names}
    if "input_ids" in ask.names and shown:
        yield from _with_places(ask)
        yield from _of(ask, least | shown | {"input_ids"})
    yield from _of(ask, least)
    if "input_ids" in ask.names:
        yield from _of(ask, least | {"input_ids"})
        yield from _of(ask, ask.required | {"input_ids"})


def _of(ask: Ask, wanted: set[str] | frozenset[str]) -> Iterator[Inputs]:
    """Ways to have these arguments, and those that go with them; one that is None is left out."""
    wanted = set(wanted) & ask.names
    if "decoder_input_ids" in ask.names:
        wanted.add("decoder_input_ids")
    for name in list(wanted):
        wanted |= set(_BESIDE.get(name, ())) & ask.names
    made = {name: _MAKERS[name](ask) for name in sorted(wanted) if name in _MAKERS}
    for choice in itertools.islice(itertools.product(*made.values()), _MOST_WAYS):
        yield _with_masks(ask, {name: value for name, value in zip(made, choice, strict=True) if value is not None})


def _with_masks(ask: Ask, inputs: Inputs) -> Inputs:
    """With the masks that some models cannot do without: all of everything counts."""
    masks: Inputs = {}
    # Where nothing can be read, no mask can be looked at to see that it hides nothing.
    if (
        "input_ids" in inputs
        and "attention_mask" in ask.names
        and not any(one.is_meta for one in ask.model.parameters())
    ):
        masks["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "qformer_input_ids" in inputs:
        masks["qformer_attention_mask"] = torch.ones_like(inputs["qformer_input_ids"])
    if "spatial_shapes" in inputs and "pixel_attention_mask" in ask.names:
        masks["pixel_attention_mask"] = torch.ones(inputs["pixel_values"].shape[:2], dtype=torch.long)
    heard = inputs.get("input_features")
    if heard is not None and heard.ndim == 3:
        length = next((size for size in heard.shape[1:] if size != bins(ask)), heard.shape[-1])
        for name in ("input_features_mask", "feature_attention_mask"):
            if name in ask.names:
                masks[name] = torch.ones(1, length, dtype=torch.long)
    return {**inputs, **masks}


def _with_places(ask: Ask) -> Iterator[Inputs]:
    """A text with a picture or a sound in it: as many places in the text as the model's own encoder makes of it."""
    for kind, (argument, encode) in _SHOWN.items():
        token = ask.of("", f"{kind}_token_id", f"{kind}_token_index")
        encoder = getattr(ask.model, encode, None)
        if argument not in ask.names or not isinstance(token, int) or encoder is None:
            continue
        for inputs in _of(ask, {argument}):
            beside = {
                name: value
                for name, value in inputs.items()
                if name not in ("input_ids", "decoder_input_ids", "attention_mask")
            }
            try:
                with torch.no_grad():
                    count = _places(encoder(**on_device(ask, beside)))
            except Exception:  # not this layout, or arguments that it does not take
                continue
            tokens = with_places(safe_tokens(ask), token, count)
            types = (tokens == token).long() if "mm_token_type_ids" in ask.names else None
            found = {**inputs, "input_ids": tokens} | ({} if types is None else {"mm_token_type_ids": types})
            yield _with_masks(ask, found)


def _places(encoded: Any) -> int:
    """How many vectors there are in what an encoder gave."""
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(encoded, name, None) is not None:
            encoded = getattr(encoded, name)
            break
    if isinstance(encoded, Tensor):
        return encoded.numel() // encoded.shape[-1]
    return sum(_places(one) for one in encoded if one is not None)


def on_device(ask: Ask, inputs: Inputs) -> Inputs:
    """The inputs where the model is, real numbers of the type of its weights."""
    weight = next((one for one in ask.model.parameters() if one.is_floating_point()), torch.empty(0))

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, list):
            return [moved(one) for one in value]
        return value

    return {name: moved(value) for name, value in inputs.items()}
