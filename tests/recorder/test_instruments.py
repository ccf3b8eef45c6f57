"""A new instrument is one file and one line of the registry."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import talkerviz as tv
from talkerviz.recorder.instruments.base import Instrument, collective_stamps, implementations
from talkerviz.recorder.instruments.registry import CLOCKS, MEASURES, Kind

# A column that the schema does not have, `energy_joules`, is kept in memory; `busy_ns` goes to files too.
ENERGY_METER = '''
"""Energy meter: joules that calls take, as a made-up device counts them."""

from __future__ import annotations

import pandas as pd

from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo

joules = 0


class EnergyMeter(Instrument):
    """Instrument that gives `energy_joules`."""

    def __init__(self, run: RunContext) -> None:
        self._joules: list[int] = []

    def attach(self, undo: Undo) -> None:
        undo.append(lambda: self._joules.append(-1))

    def stamp(self, entry: bool) -> None:
        self._joules.append(joules)

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        assert self._joules[-1] == -1
        begin, end = (pd.Series(self._joules).iloc[edges[name]].to_numpy() for name in ("begin", "end"))
        return Readings({"energy_joules": end - begin, "busy_ns": (end - begin) * 10}, {"joules": joules})
'''


class Burns(nn.Module):
    def __init__(self, meter: object, joules: int, *inner: nn.Module) -> None:
        super().__init__()
        self.meter, self.joules, self.inner = meter, joules, nn.ModuleList(inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.inner:
            x = module(x)
        self.meter.joules += self.joules  # type: ignore[attr-defined]
        return x


@pytest.mark.parametrize("kind", ["clock", "measure"])
def test_a_new_instrument_is_one_file_and_one_line_of_the_registry(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"energy_meter_{kind}.py").write_text(ENERGY_METER)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module(f"energy_meter_{kind}")
    monkeypatch.setitem(CLOCKS if kind == "clock" else MEASURES, "energy", Kind(lambda run: [module.EnergyMeter(run)]))

    model = Burns(module, 1, Burns(module, 2), Burns(module, 4))
    with tv.recording(model, **{"clock": "none", kind: "energy"}) as rec:  # type: ignore[arg-type]
        model(torch.zeros(1))
    trace = rec.trace
    assert trace.calls["path"].tolist() == ["model", "model.inner.0", "model.inner.1"]
    assert trace.calls["energy_joules"].tolist() == [7, 2, 4]
    assert trace.facts["joules"] == 7

    trace.save(tmp_path / "run.parquet")
    assert tv.Trace.load(tmp_path / "run.parquet").calls["busy_ns"].tolist() == [70, 20, 40]


@pytest.mark.parametrize(("option", "name"), [("clock", "energy"), ("measure", "energy")])
def test_an_unknown_instrument_is_refused_with_the_known_ones(option: str, name: str) -> None:
    known = ", ".join(CLOCKS if option == "clock" else MEASURES)
    with pytest.raises(ValueError, match=f"'{name}': choose from {known}"), tv.recording(nn.ReLU(), **{option: name}):  # type: ignore[arg-type]
        pass


def test_methods_that_an_instrument_does_not_define_are_not_called() -> None:
    class OnlyStamps(Instrument):
        def stamp(self, entry: bool) -> None:
            """Count nothing."""

    instruments = [Instrument(), OnlyStamps()]
    assert [len(implementations(instruments, name)) for name in ("stamp", "on_mark", "finish")] == [1, 0, 0]
    assert len(collective_stamps(instruments)) == 1
