"""Builders of the talker and of code2wav, with a checkpoint's weights or with random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from talkerviz.talker.files.stored import StoredModule
from talkerviz.talker.files.weight_loader import OnBytes, read_into
from talkerviz.talker.model.code2wav import Code2Wav
from talkerviz.talker.model.code2wav_config import Code2WavConfig
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
    """Build a talker with random weights, in eval mode and without gradients.

    Args:
        config: the talker's config.
        impl: `native` or `transformers`; both get the same weights, bit for bit.
        device: device of the weights; on meta they are not filled.
        dtype: dtype of the weights.
        seed: random seed.

    Raises:
        ValueError: another `impl`.
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
    """Build a talker with a checkpoint's weights, in eval mode and without gradients.

    Args:
        config: `read_talker_config(directory)`.
        stored: `find_module(directory, "talker.")`.
        impl: `native` or `transformers`.
        device: device of the weights.
        dtype: dtype of the weights; by default the stored one.
        on_bytes: progress callback, see `read_into`.

    Raises:
        ValueError: as `read_into`.
    """
    talker = _empty_talker(config, impl, torch.device(device), dtype or stored.dtype)
    read_into(talker, stored, on_bytes)
    return talker


def _empty_talker(config: TalkerConfig, impl: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build a talker whose weights are not initialised."""
    if impl not in ("native", "transformers"):
        raise ValueError(f"unknown impl '{impl}': choose from native, transformers")
    # Built on meta and allocated in its final dtype, so that there is never a second copy.
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
    """Fill every parameter in place with values that depend on the seed and its name, shape and dtype alone."""
    fill_parameters(talker, lambda name, weight: _draw(weight, name, seed))


@torch.no_grad()
def fill_parameters(module: nn.Module, draw: Callable[[str, Tensor], None]) -> None:
    """Call `draw(name, tensor)` for every parameter, in several threads; it fills the tensor."""

    def fill(named: tuple[str, Tensor]) -> None:
        name, parameter = named
        # Drawn on the CPU, so that every device gets the same values.
        on_cpu = parameter if parameter.device.type == "cpu" else torch.empty_like(parameter, device="cpu")
        draw(name, on_cpu)
        if on_cpu is not parameter:
            parameter.copy_(on_cpu)

    # Random number generation releases the interpreter lock: one core for each thread.
    with ThreadPoolExecutor(max_workers=min(8, torch.get_num_threads())) as pool:
        list(pool.map(fill, module.named_parameters()))


def generator_of(name: str, seed: int) -> torch.Generator:
    """Return the random generator of a parameter for a seed."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _draw(weight: Tensor, name: str, seed: int) -> None:
    if name.endswith("norm.weight"):
        weight.fill_(1.0)
    elif weight.ndim == 1:
        weight.zero_()
    else:
        # Unit variance in the embeddings and after each product, so that codes depend on the codes before.
        # Uniform, since billions of normal numbers take minutes.
        fan_in = 1 if "codec_embedding" in name else weight.shape[-1]
        bound = (3 / fan_in) ** 0.5
        weight.uniform_(-bound, bound, generator=generator_of(name, seed))


def build_code2wav(
    config: Code2WavConfig, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Code2Wav:
    """Build a code2wav with random weights, whose audio is noise; in eval mode, without gradients."""
    code2wav = _empty_code2wav(config, torch.device(device), dtype)
    fans = {f"{name}.weight": _fan_in(module) for name, module in code2wav.named_modules()}

    def draw(name: str, weight: Tensor) -> None:
        if name.endswith(("norm.weight", ".scale", ".gamma")):
            weight.fill_(1.0)
        elif weight.ndim == 1:
            weight.zero_()
        else:
            # Halved in the decoder, whose residuals add up: else nearly all samples would be clipped.
            bound = (3 / fans[name]) ** 0.5 * (0.5 if name.startswith("decoder.") else 1.0)
            weight.uniform_(-bound, bound, generator=generator_of(name, seed))

    fill_parameters(code2wav, draw)
    return code2wav


def load_code2wav(
    config: Code2WavConfig,
    stored: StoredModule,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    on_bytes: OnBytes | None = None,
) -> Code2Wav:
    """Build a code2wav with a checkpoint's weights, in eval mode and without gradients.

    Args:
        config: `read_code2wav_config(directory)`.
        stored: `find_module(directory, "code2wav.")`.
        device: device of the weights.
        dtype: dtype of the weights; by default the stored one.
        on_bytes: progress callback, see `read_into`.

    Raises:
        ValueError: as `read_into`.
    """
    code2wav = _empty_code2wav(config, torch.device(device), dtype or stored.dtype)
    read_into(code2wav, stored, on_bytes)
    return code2wav


def _empty_code2wav(config: Code2WavConfig, device: torch.device, dtype: torch.dtype) -> Code2Wav:
    """Build a code2wav whose weights are not initialised."""
    with torch.device("meta"):
        code2wav = Code2Wav(config)
    code2wav.to(dtype).to_empty(device=device)
    code2wav.eval().requires_grad_(False)
    code2wav.pre_transformer.rotary_emb.reset_buffers(device)
    return code2wav


def _fan_in(module: nn.Module) -> float:
    """Return the number of products that are summed for one value of a module's output."""
    if isinstance(module, nn.ConvTranspose1d):
        return module.in_channels * module.kernel_size[0] / module.stride[0]
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Embedding) or not isinstance(weight, Tensor):
        return 1.0
    return weight[0].numel()
