"""Runner of a Hugging Face model: `generate` if it has one, else one forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.recorder.dataflow.input_names import name_inputs
from talkerviz.targets.huggingface.from_config import one_line
from talkerviz.targets.huggingface.input_factory import candidate_inputs, on_device
from talkerviz.targets.huggingface.model_spec import PROMPT_TOKENS, Inputs, ModelSpec, model_spec
from talkerviz.targets.huggingface.quiet_transformers import quiet

_TRIED_TOKENS = 2  # a prompt and one step with a cache
_MAX_GENERATE_TRIES = 24  # candidate inputs tried with `generate`


@dataclass(frozen=True)
class Runner:
    """A repeatable run of a model.

    Attributes:
        run: function that runs the model once and returns its output.
        generates: True if it runs `generate`.
        inputs: the model's inputs by name.
    """

    run: Callable[[], Any]
    generates: bool
    inputs: Inputs

    def shapes(self) -> dict[str, list[int]]:
        """Return the shape of each input tensor by its name."""
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
    """Find inputs that a model runs on by running it on candidates, for two tokens if it generates.

    Args:
        model: model of transformers, in eval mode.
        tokens: number of tokens to generate.
        seed: random seed for the inputs, and for the model's own random numbers.
        generates: False for one forward pass in any case.
        prompt_tokens: length of the prompt, of a model that takes text.
        batch: number of sequences; rows differ, and the first is that of a batch of one.

    Raises:
        ValueError: it runs on none of the candidates; the message has the likeliest one's error.
    """
    specs = [model_spec(model, seed + row, prompt_tokens) for row in range(batch)]
    spec = specs[0]
    failure: Exception | None = None
    generate: Any = getattr(model, "generate", None)
    if generates and callable(generate):
        for candidate in itertools.islice(_batches(specs), _MAX_GENERATE_TRIES):
            inputs = on_device(spec, candidate)
            for arguments in _to_generate(model, inputs):
                run = _runs(model, generate, arguments, seed)
                try:
                    run(_TRIED_TOKENS)
                except Exception as error:  # the model does not take these inputs
                    failure = failure or error
                else:
                    return Runner(lambda run=run: run(tokens), True, arguments)  # type: ignore[misc]
    for candidate in _batches(specs):
        inputs = on_device(spec, candidate)
        run = _runs(model, model, inputs, seed)
        try:
            run(None)
        except Exception as error:
            failure = failure or error
        else:
            return Runner(lambda run=run: run(None), False, inputs)  # type: ignore[misc]
    reason = one_line(failure) if failure else "there are none"
    raise ValueError(f"{type(model).__name__}: no inputs that it runs on: {reason}") from failure


def _batches(specs: Sequence[ModelSpec]) -> Iterator[Inputs]:
    """Yield candidate inputs for the rows of all specs at once."""
    for rows in zip(*(candidate_inputs(spec) for spec in specs), strict=False):
        yield rows[0] if len(rows) == 1 else {name: _concatenate([row[name] for row in rows]) for name in rows[0]}


def _concatenate(values: Sequence[Any]) -> Any:
    """Concatenate the rows of an argument; packed patches, which have no batch dimension, follow each other too."""
    if isinstance(values[0], Tensor):
        return torch.cat([*values])
    if isinstance(values[0], list):
        return [_concatenate(items) for items in zip(*values, strict=True)]
    return values[0]


def _to_generate(model: Any, inputs: Inputs) -> Iterator[Inputs]:
    """Yield arguments of `generate` to try: greedy without an end of text, then the model's own settings."""
    settings = model.generation_config
    start = {}
    if model.config.is_encoder_decoder and settings.decoder_start_token_id is None and settings.bos_token_id is None:
        start = {"decoder_start_token_id": 0}
    prompt = {name: value for name, value in inputs.items() if not name.startswith("decoder_") and name != "use_cache"}
    greedy = {**start, "do_sample": False, "num_beams": 1, "eos_token_id": None, "pad_token_id": 0}
    yield {**prompt, **greedy}
    if len(prompt) < len(inputs):
        yield {**inputs, **greedy}
    yield prompt


@dataclass
class Lent:
    """An input tensor that is restored for each run, since some models write into their inputs.

    It is copied only after a write: a copy is an operation, which the trace would have.
    """

    kept: Tensor
    given: Tensor | None = None
    version: int = 0

    def give(self) -> Tensor:
        """Return the same tensor each time, or a fresh copy if it was written to."""
        if self.given is None or self.given._version != self.version:
            self.given = self.kept.clone()
            self.version = self.given._version
        return self.given


def _runs(model: nn.Module, call: Callable[..., Any], arguments: Inputs, seed: int) -> Callable[[int | None], Any]:
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    lent = {name: Lent(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}

    @torch.no_grad()
    def run(tokens: int | None) -> Any:
        length = {} if tokens is None else {"max_new_tokens": tokens}
        with quiet(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            given = {name: value.give() if isinstance(value, Lent) else value for name, value in lent.items()}
            with name_inputs(given):  # `generate` reads some of them before any module receives them
                return call(**given, **length)

    return run
