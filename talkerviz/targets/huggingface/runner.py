"""How a model of transformers is run: it generates where it can, else it makes one forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.recorder.dataflow.input_names import naming
from talkerviz.targets.huggingface.from_config import one_line
from talkerviz.targets.huggingface.input_factory import on_device, ways
from talkerviz.targets.huggingface.model_spec import PROMPT_TOKENS, Ask, Inputs, ask_of
from talkerviz.targets.huggingface.quiet_transformers import quiet

_TRIED_TOKENS = 2
_MOST_TRIED = 24  # ways in which generating is tried


@dataclass(frozen=True)
class Runner:
    """Runs a model, always in the same way.

    Attributes:
        run: makes one run, and gives what the model returned.
        generates: whether it generates tokens.
        inputs: what goes in.
    """

    run: Callable[[], Any]
    generates: bool
    inputs: Inputs

    def shapes(self) -> dict[str, list[int]]:
        """The shape of each tensor that goes in, by its name."""
        return {name: list(value.shape) for name, value in self.inputs.items() if isinstance(value, Tensor)}


def runner(
    model: nn.Module,
    tokens: int,
    seed: int,
    generates: bool = True,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    batch: int = 1,
) -> Runner:
    """Find inputs that a model runs on. Nothing but running it tells, so it runs, over two tokens if it generates.

    Args:
        model: of transformers, in eval mode.
        tokens: how many to generate, where it generates.
        seed: draws the inputs, and whatever the model draws while it runs.
        generates: False for one forward pass in any case.
        prompt_tokens: length of the prompt, of a model that takes text.
        batch: number of sequences; rows differ, and the first is that of a batch of one.

    Raises:
        ValueError: it runs on none of the inputs that there are; with what it says of the likeliest.
    """
    asks = [ask_of(model, seed + row, prompt_tokens) for row in range(batch)]
    ask = asks[0]
    failure: Exception | None = None
    generate: Any = getattr(model, "generate", None)
    if generates and callable(generate):
        for way in itertools.islice(_batches(asks), _MOST_TRIED):
            inputs = on_device(ask, way)
            for arguments in _to_generate(model, inputs):
                run = _runs(model, generate, arguments, seed)
                try:
                    run(_TRIED_TOKENS)
                except Exception as error:  # not these inputs
                    failure = failure or error
                else:
                    return Runner(lambda run=run: run(tokens), True, arguments)  # type: ignore[misc]
    for way in _batches(asks):
        inputs = on_device(ask, way)
        run = _runs(model, model, inputs, seed)
        try:
            run(None)
        except Exception as error:
            failure = failure or error
        else:
            return Runner(lambda run=run: run(None), False, inputs)  # type: ignore[misc]
    reason = one_line(failure) if failure else "there are none"
    raise ValueError(f"{type(model).__name__}: no inputs that it runs on: {reason}") from failure


def _batches(asks: Sequence[Ask]) -> Iterator[Inputs]:
    """Yield the ways to call the model, for the rows of all specs at once."""
    for rows in zip(*(ways(ask) for ask in asks), strict=False):
        yield rows[0] if len(rows) == 1 else {name: _concatenate([row[name] for row in rows]) for name in rows[0]}


def _concatenate(values: Sequence[Any]) -> Any:
    """Concatenate the rows of an argument; packed patches, which have no batch dimension, follow each other too."""
    if isinstance(values[0], Tensor):
        return torch.cat([*values])
    if isinstance(values[0], list):
        return [_concatenate(items) for items in zip(*values, strict=True)]
    return values[0]


def _to_generate(model: Any, inputs: Inputs) -> Iterator[Inputs]:
    """Arguments of `generate`: greedy, and to the last token whatever is said; or as the model would have it."""
    ours = model.generation_config
    start = {}
    if model.config.is_encoder_decoder and ours.decoder_start_token_id is None and ours.bos_token_id is None:
        start = {"decoder_start_token_id": 0}
    prompt = {name: value for name, value in inputs.items() if not name.startswith("decoder_") and name != "use_cache"}
    greedy = {**start, "do_sample": False, "num_beams": 1, "eos_token_id": None, "pad_token_id": 0}
    yield {**prompt, **greedy}
    if len(prompt) < len(inputs):
        yield {**inputs, **greedy}
    yield prompt


@dataclass
class Lent:
    """A tensor that a model is given, and gets again as it was: some write into their inputs.

    It is copied only after it was written to: a copy is an operation, which would stand in the picture of the run.
    """

    kept: Tensor
    given: Tensor | None = None
    version: int = 0

    def give(self) -> Tensor:
        """The same each time, or a fresh copy if that was written to."""
        if self.given is None or self.given._version != self.version:
            self.given = self.kept.clone()
            self.version = self.given._version
        return self.given


def _runs(model: nn.Module, call: Callable[..., Any], arguments: Inputs, seed: int) -> Callable[[int | None], Any]:
    devices = {one.device for one in model.parameters() if one.is_cuda}
    lent = {name: Lent(one) if isinstance(one, Tensor) else one for name, one in arguments.items()}

    @torch.no_grad()
    def run(tokens: int | None) -> Any:
        counted = {} if tokens is None else {"max_new_tokens": tokens}
        with quiet(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            given = {name: one.give() if isinstance(one, Lent) else one for name, one in lent.items()}
            with naming(given):  # `generate` reads some of them before any module is handed them
                return call(**given, **counted)

    return run
