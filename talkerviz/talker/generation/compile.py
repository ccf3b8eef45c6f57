"""A talker whose layers and heads are compiled, for frames near the time in which memory gives their weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from talkerviz.talker.model.talker import TalkerForConditionalGeneration


def compile_talker(talker: TalkerForConditionalGeneration) -> None:
    """Compile each layer and each head by itself with torch.compile, in place; all modules stay where they are.

    All layers of a stack share their code. It is made while the first two frames are spoken, some ten seconds, and
    Inductor keeps it for later processes. In float32 codes stay what they are. In bfloat16 they are as near to those
    that float32 gives, but others: what stands between two products is not rounded.

    Raises ValueError as `check_compiler` does, and for a talker that is fused.
    """
    check_compiler()
    if "forward" in vars(talker.codec_head):
        raise ValueError("the talker's layers are fused, which makes other kernels of them: compile it or fuse it")
    predictor = talker.code_predictor
    for module in (*talker.model.layers, talker.codec_head, *predictor.model.layers, *predictor.lm_head):
        module.compile()


def check_compiler() -> None:
    """Raises ValueError where Inductor finds no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError("torch.compile finds no C++ compiler: install g++, or name one in CXX") from error


def uncompiled(talker: TalkerForConditionalGeneration) -> AbstractContextManager[object]:
    """Within it a compiled talker runs as one that is not. So a prompt is read, of which each has its own length."""
    if is_compiled(talker):
        eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return eager
    return nullcontext()


def is_compiled(talker: TalkerForConditionalGeneration) -> bool:
    """Whether any of its modules are."""
    return any(module._compiled_call_impl is not None for module in talker.modules())
