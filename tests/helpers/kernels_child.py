"""Compiles what the fused layers of a preset launch, for a Hopper GPU that need not be there; what came of it is JSON.

    python kernels_child.py full bfloat16

Run by test_talker_kernels.py, since what interprets Triton's kernels in other tests keeps them from being compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from talkerviz.talker import preset
from talkerviz.talker.kernels import angles, attention, codes, experts, fuse_modules, mlp, rows
from talkerviz.talker.kernels.launch import WARPS
from talkerviz.talker.model.attention import additive_mask
from talkerviz.talker.model.cache import KVCache, StaticCache
from talkerviz.talker.model.talker import TalkerForConditionalGeneration

TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32", torch.bool: "*i1"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPTIONS = ("num_warps", "launch_pdl")
KERNELS = {
    "project", "normalise", "attend", "project_mixed", "gate", "project_added",
    "angles", "find_greatest", "embed", "route", "choose_experts", "gate_experts", "project_experts",
}  # fmt: skip


class Launches:
    """Stands for a kernel, and keeps what it is launched with."""

    def __init__(self, kernel: Any, found: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> None:
        self.kernel = kernel
        self.found = found

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            name = f"{self.kernel.fn.__name__}, {constants.get('TOKENS', 1)} tokens, grid {grid}"
            self.found[name] = (self.kernel, args, constants)

        return launch


def launches() -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Those of a frame, on tensors without numbers."""
    found: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}
    for part in (angles, attention, codes, experts, mlp, rows):
        for name in KERNELS & vars(part).keys():
            setattr(part, name, Launches(getattr(part, name), found))
        part.launch_options = lambda x, warps=WARPS: {"PDL": True, "launch_pdl": True, "num_warps": warps}
    config, dtype, meta = preset(sys.argv[1]), getattr(torch, sys.argv[2]), torch.device("meta")
    text, predictor = config.text, config.code_predictor
    with meta:
        torch.set_default_dtype(dtype)
        talker = TalkerForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
    fuse_modules(talker)
    cache, within = KVCache(text, 200, meta, dtype), KVCache(predictor, 16, meta, dtype)
    still = StaticCache(cache)
    x = torch.empty(1, 1, text.hidden_size, dtype=dtype, device="meta")
    turns = talker.model.rotary_emb(x, torch.empty(1, 1, 1, dtype=torch.long, device="meta").expand(3, -1, -1))
    talker.model.layers[0](x, turns, next(iter(still.layers(1))), additive_mask(still.mask(1), x.dtype))
    for tokens in (2, 1):
        embeds = torch.empty(1, tokens, predictor.hidden_size, dtype=dtype, device="meta")
        talker.code_predictor(inputs_embeds=embeds, cache=within, group=1)
    code = talker.argmax(talker.codec_head(talker.model.norm(x))[:, -1])
    talker.model.codec_embedding(code)
    return found


def compiled(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> dict[str, Any]:
    """Return ptxas' figures of a kernel: registers, stack bytes, wide loads before its wait, all loads after it."""
    signature: dict[str, str] = {}
    known: dict[str, Any] = {}
    facts: dict[tuple[int], list[list[Any]]] = {}
    given = dict(zip(kernel.arg_names, args, strict=False)) | constants
    for number, name in enumerate(kernel.arg_names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            signature[name], facts[(number,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif value is None or name in constants:
            signature[name], known[name] = "constexpr", value
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
            if isinstance(value, int) and value % 16 == 0:
                facts[(number,)] = [["tt.divisibility", 16]]
    options = {name: constants[name] for name in OPTIONS}
    made = triton.compile(ASTSource(kernel, signature, known, facts), GPUTarget("cuda", 90, 32), options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        used, code = (
            subprocess.run([TOOLS / tool[0], *tool[1:], file.name], capture_output=True, text=True, check=True).stdout
            for tool in (("cuobjdump", "-res-usage"), ("nvdisasm",))
        )
    early, waits, late = code.partition("ACQBULK")
    return {
        "registers": int(re.findall(r"REG:(\d+)", used)[-1]),
        "stack": int(re.findall(r"STACK:(\d+)", used)[-1]),
        "waits": bool(waits),
        "early": len(re.findall(r"LDG\.E\.128", early)),
        "late": len(re.findall(r"LDG\.E\b", late)),
    }


if __name__ == "__main__":
    json.dump({name: compiled(*launch) for name, launch in launches().items()}, sys.stdout)
