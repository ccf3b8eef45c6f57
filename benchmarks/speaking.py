"""Talker variants of the benchmarks, and their timing."""

from __future__ import annotations

import copy
import gc
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.talker import build_talker, preset
from talkerviz.talker.generation.cuda_graphs import replay_frames
from talkerviz.talker.kernels import fuse_talker
from talkerviz.talker.model.attention import disable_cudnn_attention
from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.talker import TalkerForConditionalGeneration

OURS, REPLAYED = "native", "native, `--graphs`"


@dataclass
class Way:
    """Variant of the talker, with its median seconds a frame in each round, first frames left out."""

    speak: Callable[[Callable[[int], None]], Tensor]
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    frames: list[float] = field(default_factory=list)
    codes: Tensor = field(default_factory=lambda: torch.empty(0))


def native_talker(kind: str, device: str) -> tuple[TalkerForConditionalGeneration, TalkerConfig]:
    """Build the native talker of a PRESET:DTYPE."""
    name, dtype = kind.split(":")
    config = preset(name)
    talker = build_talker(config, "native", device, getattr(torch, dtype))
    assert isinstance(talker, TalkerForConditionalGeneration)
    return talker, config


def need_cuda() -> None:
    """Exit without a CUDA device; else choose the attention kernels that `talkerviz trace` chooses."""
    if not torch.cuda.is_available():
        sys.exit(f"benchmarks/{Path(sys.argv[0]).name}: torch sees no CUDA device; nothing was measured")
    disable_cudnn_attention()


def fused_copy(talker: TalkerForConditionalGeneration) -> TalkerForConditionalGeneration:
    """Return a copy with fused layers that shares the weights."""
    fused = copy.deepcopy(talker, {id(weight): weight for weight in talker.parameters()})
    fuse_talker(fused)
    return fused


@contextmanager
def replayed(
    talker: TalkerForConditionalGeneration, within: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[None]:
    """Replay the talker's frames as CUDA graphs inside the block."""
    replay_frames(talker)
    try:
        with within():
            yield
    finally:
        talker.acceleration = replace(talker.acceleration, graphs=False)


def time_once(way: Way, device: str) -> None:
    times: list[float] = []

    def on_frame(done: int) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter())

    gc.collect()
    with way.within():
        way.codes = way.speak(on_frame)
    way.frames.append(statistics.median(later - before for before, later in pairwise(times)))


def bytes_of_a_frame(talker: nn.Module, config: TalkerConfig) -> int:
    """Return the bytes of weights that a frame must read; each pass of the code predictor reads its layers again."""

    def size(*modules: nn.Module) -> int:
        return sum(weight.nbytes for module in modules for weight in module.parameters())

    assert isinstance(talker, TalkerForConditionalGeneration)
    predictor, text = talker.code_predictor, config.text
    experts = size(*(layer.mlp.experts for layer in talker.model.layers))  # type: ignore[arg-type, union-attr]
    chosen = experts * text.num_experts_per_tok // text.num_experts
    decoder = size(talker.model.layers, talker.codec_head) - experts + chosen
    return decoder + len(predictor.lm_head) * size(predictor.model.layers) + size(predictor.lm_head)
