"""Choice between compiled and eager layers, by the time of a run's first frames."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from time import perf_counter

import torch

from talkerviz.talker.generation.compile import decompile_talker
from talkerviz.talker.generation.generate import stream
from talkerviz.talker.generation.prompt import Prompt
from talkerviz.talker.model.talker import TalkerForConditionalGeneration

_WARM_UP_FRAMES = 3
"""The first frame runs eagerly up to its first code, and compilation ends with the third."""

_TIMED_FRAMES = 4
"""Timed frames of each kind; the fastest counts, since other programs only make frames slower."""


@torch.no_grad()
def keep_faster_layers(talker: TalkerForConditionalGeneration, prompt: Prompt) -> float | None:
    """Undo `compile_talker` if eager frames are faster on this machine.

    The first frames after the prompt are decoded for it, compiled and eager in turn.

    Returns:
        Speed of compiled frames as a multiple of eager ones, below 1 if it was undone; None, and nothing was measured,
        if the talker has too few positions for so many frames.
    """
    count = _WARM_UP_FRAMES + 2 * _TIMED_FRAMES
    if prompt.inputs_embeds.shape[1] + count > talker.config.text.max_position_embeddings:
        return None
    frames = stream(talker, [prompt], count, ignore_eos=True)
    for _ in range(_WARM_UP_FRAMES):
        next(frames)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    gc.collect()
    for _ in range(_TIMED_FRAMES):
        for compiled in seconds:
            with nullcontext() if compiled else torch.compiler.set_stance("force_eager"):
                start = perf_counter()
                next(frames).codes.cpu()  # waits for a GPU
                seconds[compiled].append(perf_counter() - start)
    speed = min(seconds[False]) / min(seconds[True])
    if speed < 1:
        decompile_talker(talker)
    return speed
