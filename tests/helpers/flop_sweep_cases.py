"""Sweep of torch's test databases: FLOP of each layer and operator, against torch's own counter."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import talkerviz as tv

Case = tuple[str, Callable[[], object]]
"""Name of a layer or operator, and a function that runs it on one input."""


@dataclass(frozen=True)
class Outcome:
    """Names of the layers or operators of a sweep.

    Attributes:
        tried: those that ran.
        uncounted: those with an operator of unknown arithmetic.
        below_torch: those with less FLOP than torch's counter gives.
        with_products: those of which torch's counter counts any.
        equal_to_torch: those of them with exactly torch's FLOP for all inputs.
    """

    tried: set[str]
    uncounted: set[str]
    below_torch: set[str]
    with_products: set[str]
    equal_to_torch: set[str]


class CaseModule(nn.Module):
    """A module that runs one case."""

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__()
        self.run = run

    def forward(self) -> None:
        """Run the case and drop its result."""
        self.run()


def layer_cases(inputs: int | None) -> Iterator[Case]:
    """Yield the first inputs of each layer and loss of `torch.nn`, in training and in evaluation."""
    from torch.testing._internal.common_modules import module_db

    for info in module_db:
        for training in (True, False):
            given = info.module_inputs_func(
                info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
            )
            for each in [each for each in given if each.forward_input is not None][:inputs]:
                made = each.constructor_input
                try:
                    module = info.module_cls(*made.args, **made.kwargs).train(training)
                except RuntimeError:  # made for another dtype
                    continue
                yield info.name, partial(module, *each.forward_input.args, **each.forward_input.kwargs)


def operator_cases(inputs: int | None, every: int = 1) -> Iterator[Case]:
    """Yield the first inputs of each operator, or of one operator in `every`."""
    from torch.testing._internal.common_methods_invocations import op_db

    for op in op_db[::every]:
        dtypes = op.supported_dtypes("cpu")
        if not dtypes:
            continue
        dtype = torch.float32 if torch.float32 in dtypes else min(dtypes, key=str)
        for sample in itertools.islice(op.sample_inputs("cpu", dtype), inputs):
            yield op.name, partial(op, sample.input, *sample.args, **sample.kwargs)


def sweep(cases: Iterable[Case]) -> Outcome:
    """Run cases in one recording, and count each with torch's counter before."""
    torch.manual_seed(0)
    names, modules, references = [], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, run in cases:
            try:
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    run()
            except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError):
                continue  # inputs of an error, or of a library that is not there
            names.append(name)
            modules.append(CaseModule(run))
            references.append(counter.get_total_flops())
        model = nn.ModuleList(modules)
        with torch.no_grad():
            calls = tv.record(model, lambda: [module() for module in modules], measure="cost").calls
    outer = calls[calls["depth"] == 0]
    rows = list(zip(names, outer["flops"], outer["uncounted_operators"], references, strict=True))
    return Outcome(
        tried=set(names),
        uncounted={name for name, _, uncounted, _ in rows if uncounted is not None and uncounted != 0},
        below_torch={name for name, flops, _, reference in rows if flops < reference},
        with_products={name for name, *_, reference in rows if reference},
        equal_to_torch={name for name, *_, reference in rows if reference}
        - {name for name, flops, _, reference in rows if flops != reference},
    )


def report(kind: str, outcome: Outcome) -> dict[str, Any]:
    """Return the counts of a sweep for a table."""
    return {
        "kind": kind,
        "tried": len(outcome.tried),
        "with a figure": len(outcome.tried - outcome.uncounted),
        "with products": len(outcome.with_products),
        "exactly torch's": len(outcome.equal_to_torch),
        "below torch's": len(outcome.below_torch),
    }
