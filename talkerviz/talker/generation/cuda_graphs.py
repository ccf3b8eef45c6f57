"""A frame as a CUDA graph: one launch in place of thousands of kernel launches."""

from __future__ import annotations

import torch
from torch import Tensor

from talkerviz.talker.generation.decode_step import (
    SamplingState,
    decode_first_code,
    decode_residual_codes,
    sum_code_embeddings,
)
from talkerviz.talker.model.cache import KVCache, StaticCache
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
    talker.use_cuda_graphs = True


def check_device(device: torch.device) -> None:
    """Check that a device has CUDA graphs.

    Raises:
        ValueError: it has none.
    """
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs need a CUDA device, and the talker is on {device.type}: leave out --graphs")


class StaticFrame:
    """A frame after the first, which reads and writes the same memory at each call.

    It does what `stream` does on the host, without waiting for the device and without control flow on tensor values.

    Attributes:
        text: the frame's text embedding [B, 1, H], an input.
        spoken: the summed embeddings of the last frame's codes [B, 1, H], input and output.
        codes: the frame's codes [B, G], the output.
    """

    def __init__(
        self,
        talker: TalkerForConditionalGeneration,
        cache: KVCache,
        predictor_cache: KVCache,
        state: SamplingState,
        position: Tensor,
    ) -> None:
        """Set up the buffers.

        Args:
            talker: the native talker.
            cache: the decoder's cache after the first frame.
            predictor_cache: the code predictor's cache.
            state: state of sampling.
            position: the next token's position [1, B or 1, 1].
        """
        zeros = talker.codec_head.weight.new_zeros(cache.keys.shape[1], 1, talker.config.text.hidden_size)
        self.talker = talker
        self.cache = StaticCache(cache)
        self.predictor_cache = predictor_cache
        self.state = state
        self.position = position.clone()
        self.text = zeros.clone()
        self.spoken = zeros.clone()
        self.codes = torch.zeros(len(zeros), talker.config.num_code_groups, dtype=torch.long, device=zeros.device)

    def __call__(self) -> None:
        """Decode a frame from `spoken` and `text`; update `codes` and `spoken`."""
        embeds, position_ids = self.spoken + self.text, self.position.expand(3, -1, -1)
        hidden, first_code = decode_first_code(self.talker, embeds, self.cache, position_ids, self.state)
        codes, known_embeds = decode_residual_codes(self.talker, hidden, first_code, self.predictor_cache, self.state)
        self.codes.copy_(codes)
        self.spoken.copy_(sum_code_embeddings(self.talker, codes, known_embeds))
        self.cache.position.add_(1)
        self.position.add_(1)


def capture(frame: StaticFrame) -> torch.cuda.CUDAGraph:
    """Capture a frame as a CUDA graph without advancing its state; needs a CUDA device."""
    changed = (frame.spoken, frame.codes, frame.cache.position, frame.position, frame.state.spoken)
    before = [tensor.clone() for tensor in changed]
    generator_states = [generator.get_state() for generator in frame.state.generators]
    # Warm up on a side stream, as torch asks for: libraries plan and allocate there, outside of the capture.
    side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(WARM_UPS):
            frame()
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
    torch.cuda.current_stream().wait_stream(side_stream)
    for generator, generator_state in zip(frame.state.generators, generator_states, strict=True):
        generator.set_state(generator_state)
    graph = torch.cuda.CUDAGraph()
    # From 2.14 on a capture registers the generators that it meets, and this method warns.
    if torch.__version__ < (2, 14):  # type: ignore[operator]
        for generator in frame.state.generators:
            graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        frame()
    return graph
