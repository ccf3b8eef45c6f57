"""Checks of a `config.json` before a model is built from it: it may be damaged, or made to exhaust memory."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

MAX_MODULES = 100_000
"""Maximum number of modules; models with a module per expert have up to 60,000."""
_MAX_SIZE = 1 << 31
_MAX_LAYERS = 1 << 12
_MAX_COUNT = 1 << 20  # heads, experts, labels: transformers makes lists of these
_MAX_DEPTH = 32

# Fields that name code, or files elsewhere: neither is ever run or read.
_NEVER = ("auto_map", "transformers_weights", "attn_implementation", "_attn_implementation", "custom_generate")
_SIZES = re.compile(
    r"(hidden|intermediate|vocab|embedding|ffn|mlp|image|patch|codebook|kernel|adapter)_size|[dn]_(model|ff|kv|embd|inner)"
    r"|(num|n)_.*(layer|layers|heads|experts|labels|channels|groups|blocks|codebooks|head)|head_dim|embed_dim|hidden_dim"
    r"|dim|depth|num_layers|decoder_layers|encoder_layers"
)
_LAYERS = re.compile(r".*layers?|depth")
_COUNTS = re.compile(r"(num|n)_.*")


def checked_fields(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check a config's fields, and drop those that name code.

    Args:
        fields: the parsed `config.json`.
        source: the file, for messages.

    Raises:
        ValueError: a size is not a number or larger than any model's, the nesting is too deep, architectures are not
            names, or transformers does not have the quantization.
    """
    kept = _checked(fields, source, "", 0)
    names = fields.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{source}: architectures is {_shown(names)}, not a list of classes' names")
    if (quantization := fields.get("quantization_config")) is not None:
        from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        # Methods that other packages registered are their code.
        known = isinstance(method, str) and method in AUTO_QUANTIZER_MAPPING
        if not known or not AUTO_QUANTIZER_MAPPING[method].__module__.startswith("transformers."):
            raise ValueError(f"{source}: quantization_config: transformers has no method {_shown(method)}")
    return kept


def _checked(fields: Mapping[str, Any], source: str, where: str, depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{source}: nested too deeply")
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _NEVER:
            continue
        if isinstance(value, dict):
            kept[name] = _checked(value, source, f"{where}{name}.", depth + 1)
            continue
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{source}: {where}{name} is NaN")
        if isinstance(name, str) and _SIZES.fullmatch(name):
            maximum = _MAX_LAYERS if _LAYERS.fullmatch(name) else _MAX_COUNT if _COUNTS.fullmatch(name) else _MAX_SIZE
            _check_size(value, source, f"{where}{name}", maximum)
        kept[name] = value
    return kept


def _check_size(value: Any, source: str, field: str, maximum: int) -> None:
    """Check a number, a list of numbers, or None."""
    for size in value if isinstance(value, list) else [value]:
        if size is None or isinstance(size, list | bool):
            continue
        if not isinstance(size, int | float):
            raise ValueError(f"{source}: {field} is {_shown(size)}, not a number")
        if size < 0:
            raise ValueError(f"{source}: {field} is {size}, below 0")
        if size > maximum:
            raise ValueError(f"{source}: {field} is {_shown(size)}, more than any model has")


def check_memory(build: Callable[[], nn.Module], device: str, source: str) -> None:
    """Build a model on meta, and check that its weights fit the device's free memory.

    Raises:
        ValueError: they do not, or it has too many modules.
    """
    try:
        with torch.device("meta"), _counted_modules(source):
            model = build()
    except _TooManyError as error:
        raise ValueError(str(error)) from None
    except Exception:  # some models cannot be built on meta; errors of others are raised when they are built
        return
    if device == "meta":
        return
    needed = sum(parameter.nbytes for parameter in model.parameters())
    free = _free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(f"{source}: its weights take {_gib(needed)}, and {device} has {_gib(free)} free")


class _TooManyError(ValueError):
    pass


@contextmanager
def _counted_modules(source: str) -> Iterator[None]:
    built = 0

    def count(*_: object) -> None:
        nonlocal built
        built += 1
        if built > MAX_MODULES:
            raise _TooManyError(f"{source}: it has more than {MAX_MODULES:,} modules, more than any model")

    handle = nn.modules.module.register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _free_bytes(device: str) -> int | None:
    """Return the free memory, swap included, in bytes; None if the system does not tell."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
    return sum(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree") if name in lines) or None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.3g} GiB"
