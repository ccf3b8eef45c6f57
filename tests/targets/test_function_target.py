"""What is said of a function that returns no model and callable."""

from __future__ import annotations

import re
import sys
import types

import pytest
import torch
from torch import nn

from talkerviz.targets import function_target


@pytest.mark.parametrize(
    ("returned", "wrong"),
    [
        ("3", "it returned an int"),
        ("(net, run, 3)", "it returned a tuple of 3"),
        (
            "([net, net], run)",
            "the first is a list, not a torch.nn.Module; several roots go into a torch.nn.ModuleList",
        ),
        ("(run, net)", "the first is a function, not a torch.nn.Module"),
        ("(net, net(torch.ones(1, 4)))", "the second is a Tensor; write lambda: model(x)"),
    ],
)
def test_what_is_wrong_is_named(returned: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType("made_wrongly")
    net = nn.Linear(4, 4)
    given = {"net": net, "run": lambda: net(torch.ones(1, 4)), "torch": torch}
    monkeypatch.setattr(made, "make", lambda: eval(returned, given), raising=False)
    monkeypatch.setitem(sys.modules, "made_wrongly", made)
    with pytest.raises(ValueError, match=rf"{re.escape(f'must return (model, callable): {wrong}')}$"):
        function_target("made_wrongly:make")
