"""FLOP of layers, losses and operators in torch's own test databases; `benchmarks/flop_sweep.py` runs all inputs."""

from __future__ import annotations

import pytest

# torch's databases import it.
pytest.importorskip("expecttest")

from flop_sweep_cases import layer_cases, operator_cases, sweep

ONE_INPUT = 1  # of each layer, and of one operator in four: all of them take minutes


def test_every_layer_and_loss_has_flop() -> None:
    outcome = sweep(layer_cases(ONE_INPUT))
    assert len(outcome.tried) > 100
    assert not outcome.uncounted
    assert not outcome.below_torch


def test_operators_have_flop() -> None:
    outcome = sweep(operator_cases(ONE_INPUT, every=4))
    assert len(outcome.tried) > 150
    assert not outcome.uncounted
    assert not outcome.below_torch
    assert outcome.equal_to_torch  # those of products alone
