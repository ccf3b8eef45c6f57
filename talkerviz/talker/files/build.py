"""Build a talker, with a checkpoint's weights or with random ones that depend on the seed and the names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from talkerviz.talker.files.checkpoint import StoredModule
from talkerviz.talker.files.weight_loader import OnBytes, read_into
from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.rope import RotaryEmbedding
from talkerviz.talker.model.talker import TalkerForConditionalGeneration


def build_talker(
    config: TalkerConfig,
    impl: str = "native",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> nn.Module:
    """A talker with random weights, in eval mode and without gradients; `impl` is native or transformers.

    Both get the same weights, bit for bit. On the meta device nothing is filled. Raises ValueError for another
    impl.
    """
    talker = _empty_talker(config, impl, torch.device(device), dtype)
    if torch.device(device).type != "meta":
        init_weights(talker, seed)
    return talker


def load_talker(
    config: TalkerConfig,
    stored: StoredModule,
    impl: str = "native",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    on_bytes: OnBytes | None = None,
) -> nn.Module:
    """The same with a checkpoint's weights: `stored` is `find_module(directory, "talker.")`, `config` that directory's.

    They stay in the dtype that they are stored in unless another is given. See `read_into` for how they are read, what
    `on_bytes` is told, and what raises ValueError.
    """
    talker = _empty_talker(config, impl, torch.device(device), dtype or stored.dtype)
    read_into(talker, stored, on_bytes)
    return talker


def _empty_talker(config: TalkerConfig, impl: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A talker whose weights are yet to be filled."""
    if impl not in ("native", "transformers"):
        raise ValueError(f"unknown impl '{impl}': choose from native, transformers")
    # Built without storage and allocated in its final dtype, so there is never a second copy.
    with torch.device("meta"):
        if impl == "native":
            talker: nn.Module = TalkerForConditionalGeneration(config)
        else:
            from talkerviz.talker.model.transformers_talker import transformers_talker

            talker = transformers_talker(config)
    talker.to(dtype).to_empty(device=device)
    talker.eval().requires_grad_(False)
    if impl == "native":
        for module in talker.modules():
            if isinstance(module, RotaryEmbedding):
                module.reset_buffers(device)
    else:
        from talkerviz.talker.model.transformers_talker import reset_rope_buffers

        reset_rope_buffers(talker, config, device)
    return talker


def init_weights(talker: nn.Module, seed: int) -> None:
    """Fill every parameter in place. Its values depend on the seed, its name, shape and dtype, nothing else."""
    fill_parameters(talker, lambda name, weight: _draw(weight, name, seed))


@torch.no_grad()
def fill_parameters(module: nn.Module, draw: Callable[[str, Tensor], None]) -> None:
    """Have `draw` fill every parameter, given its name and where to write to, in several threads."""

    def fill(named: tuple[str, Tensor]) -> None:
        name, parameter = named
        # Drawn on the CPU, so that every device gets the same numbers.
        on_cpu = parameter if parameter.device.type == "cpu" else torch.empty_like(parameter, device="cpu")
        draw(name, on_cpu)
        if on_cpu is not parameter:
            parameter.copy_(on_cpu)

    # The generators run outside the interpreter lock, one core each.
    with ThreadPoolExecutor(max_workers=min(8, torch.get_num_threads())) as pool:
        list(pool.map(fill, module.named_parameters()))


def generator_of(name: str, seed: int) -> torch.Generator:
    """The numbers that a seed has for a parameter of this name."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _draw(weight: Tensor, name: str, seed: int) -> None:
    if name.endswith("norm.weight"):
        weight.fill_(1.0)
    elif weight.ndim == 1:
        weight.zero_()
    else:
        # Unit variance in the embeddings and after each product, so that codes depend on what came before.
        # Uniform, since billions of normal numbers take minutes.
        fan_in = 1 if "codec_embedding" in name else weight.shape[-1]
        bound = (3 / fan_in) ** 0.5
        weight.uniform_(-bound, bound, generator=generator_of(name, seed))
