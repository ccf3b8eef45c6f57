"""A frame as a CUDA graph: thousands of kernels that the host starts at once."""

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
"""How often a frame runs before it is captured; what that changes is put back."""


def replay_frames(talker: TalkerForConditionalGeneration) -> None:
    """Have the talker speak by replaying a CUDA graph: each run captures its second frame, for all that follow.

    Codes stay what they are in float32; in bfloat16 attention may round otherwise, as it looks at a whole cache behind
    a mask. Modules are called while the frame is captured, and no more after that.

    Raises ValueError for a talker that is not on a CUDA device.
    """
    check_device(talker.codec_head.weight.device)
    talker.use_cuda_graphs = True


def check_device(device: torch.device) -> None:
    """Raises ValueError for one that has no CUDA graphs."""
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs need a CUDA device, and the talker is on {device.type}: leave out --graphs")


class StaticFrame:
    """A frame after the first that reads from and writes to the same memory each time.

    On the host it does what `stream` does; there is nothing in it that waits for a device, or that depends on numbers.
    """

    def __init__(
        self,
        talker: TalkerForConditionalGeneration,
        cache: KVCache,
        frame_cache: KVCache,
        state: SamplingState,
        position: Tensor,
    ) -> None:
        """`cache` holds what came before; `position` [1, batch or 1, 1] is the next token's."""
        embeds = talker.codec_head.weight.new_zeros(cache.keys.shape[1], 1, talker.config.text.hidden_size)
        self.talker = talker
        self.cache = StaticCache(cache)
        self.frame_cache = frame_cache
        self.state = state
        self.position = position.clone()
        self.text = embeds.clone()
        self.spoken = embeds.clone()
        self.codes = torch.zeros(len(embeds), talker.config.num_code_groups, dtype=torch.long, device=embeds.device)

    def __call__(self) -> None:
        """From what the last frame spoke, `spoken` [batch, 1, hidden], and `text`, the same, to `codes` [batch, 16]."""
        embeds, position_ids = self.spoken + self.text, self.position.expand(3, -1, -1)
        hidden, first_code = decode_first_code(self.talker, embeds, self.cache, position_ids, self.state)
        codes, most_embeds = decode_residual_codes(self.talker, hidden, first_code, self.frame_cache, self.state)
        self.codes.copy_(codes)
        self.spoken.copy_(sum_code_embeddings(self.talker, codes, most_embeds))
        self.cache.place.add_(1)
        self.position.add_(1)


def capture(frame: StaticFrame) -> torch.cuda.CUDAGraph:
    """The frame as a graph, of which nothing has run yet; needs a CUDA device."""
    changed = (frame.spoken, frame.codes, frame.cache.place, frame.position, frame.state.spoken)
    before = [tensor.clone() for tensor in changed]
    drawn = [generator.get_state() for generator in frame.state.generators]
    # Libraries make their plans and find their memory first, on a stream of its own.
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            frame()
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
    torch.cuda.current_stream().wait_stream(aside)
    for generator, state in zip(frame.state.generators, drawn, strict=True):
        generator.set_state(state)
    graph = torch.cuda.CUDAGraph()
    for generator in frame.state.generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        frame()
    return graph
