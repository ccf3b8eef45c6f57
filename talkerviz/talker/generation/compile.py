"""torch.compile for a talker's layers and heads, for frames bound by the memory bandwidth of their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from talkerviz.talker.model.talker import TalkerForConditionalGeneration


def compile_talker(talker: TalkerForConditionalGeneration) -> None:
    """Compile each layer and each head separately with torch.compile, in place; the module tree does not change.

    The layers of a stack share their compiled code. Compilation happens in the first two frames and takes about ten
    seconds; Inductor caches it for later processes. In float32 the codes do not change. In bfloat16 they differ from
    eager ones and are as close to those of float32: values between two products are not rounded.

    Raises:
        ValueError: Inductor finds no C++ compiler, or the talker is fused.
    """
    check_compiler()
    if talker.acceleration.fused:
        raise ValueError("the talker's layers are fused, which makes other kernels of them: compile it or fuse it")
    for module in _compiled_modules(talker):
        module.compile()
    talker.acceleration = replace(talker.acceleration, compiled=True)


def decompile_talker(talker: TalkerForConditionalGeneration) -> None:
    """Undo `compile_talker`."""
    for module in _compiled_modules(talker):
        module._compiled_call_impl = None
    talker.acceleration = replace(talker.acceleration, compiled=False)


def _compiled_modules(talker: TalkerForConditionalGeneration) -> Iterator[nn.Module]:
    predictor = talker.code_predictor
    yield from (*talker.model.layers, talker.codec_head, *predictor.model.layers, *predictor.lm_head)


def check_compiler() -> None:
    """Check that Inductor finds a C++ compiler.

    Raises:
        ValueError: it finds none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError("torch.compile finds no C++ compiler: install g++, or name one in CXX") from error


def uncompiled(talker: TalkerForConditionalGeneration) -> AbstractContextManager[object]:
    """Run a compiled talker eagerly inside: prompts are read so, as each length would be compiled anew."""
    if talker.acceleration.compiled:
        eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return eager
    return nullcontext()
