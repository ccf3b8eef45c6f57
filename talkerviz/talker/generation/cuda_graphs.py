"""A frame as a CUDA graph: one launch in place of thousands of kernel launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from talkerviz.talker.model.talker import TalkerForConditionalGeneration

WARM_UPS = 2
"""Runs of a frame before it is captured; their effects are undone."""


def replay_frames(talker: TalkerForConditionalGeneration) -> None:
    """Have the talker generate by replaying a CUDA graph, which each run captures from its second frame.

    In float32 the codes do not change. In bfloat16 attention may round differently, as it covers the whole cache behind
    a mask. Modules are called in the capture only, not in replays.

    Raises:
        ValueError: the talker is not on a CUDA device.
    """
    check_device(talker.codec_head.weight.device)
    talker.acceleration = replace(talker.acceleration, graphs=True)


def check_device(device: torch.device) -> None:
    """Check that a device has CUDA graphs.

    Raises:
        ValueError: it has none.
    """
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs need a CUDA device, and the talker is on {device.type}: leave out --graphs")


def capture(
    decode: Callable[[], None], changed: Sequence[Tensor], generators: Sequence[torch.Generator]
) -> torch.cuda.CUDAGraph:
    """Capture a function as a CUDA graph; needs a CUDA device.

    Args:
        decode: function that reads and writes the same memory at each call.
        changed: tensors that it changes; the capture leaves them as they are.
        generators: generators that it samples from; the same.
    """
    before = [tensor.clone() for tensor in changed]
    generator_states = [generator.get_state() for generator in generators]
    # Warm up on a side stream, as torch asks for: libraries plan and allocate there, outside of the capture.
    side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(WARM_UPS):
            decode()
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
    torch.cuda.current_stream().wait_stream(side_stream)
    for generator, generator_state in zip(generators, generator_states, strict=True):
        generator.set_state(generator_state)
    graph = torch.cuda.CUDAGraph()
    # From 2.14 on a capture registers the generators that it meets, and this method warns.
    if torch.__version__ < (2, 14):  # type: ignore[operator]
        for generator in generators:
            graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        decode()
    return graph
