"""What is raised passes through a recording, at whatever moment."""

from __future__ import annotations

import _thread
import dis
import functools
import gc
import itertools
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from small_model import CALLS, Block, Noticing, made, rows, standing, state, tree, values
from taps import every_way, tap_alone
from torch import nn

import talkerviz as tv
from talkerviz.recorder import recording as recorder

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]
HERE = Path(tv.__file__).parent


class Failing(Block):
    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.error is not None:
            raise self.error
        return self.second(x)


@every_way
@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("no memory"), StopIteration(), GeneratorExit(), KeyboardInterrupt()]
)
def test_what_is_raised_passes_through(any_tap: str, error: BaseException) -> None:
    model, x = made(Failing), values()
    expected, before = model(x), state(model)
    if any_tap != "tap" and not isinstance(error, Exception):
        pytest.skip("torch calls no hook then")
    with tv.recording(model) as rec:
        model.block.error = error
        with pytest.raises(type(error)) as raised:
            model(x)
        model.block.error = None
        assert raised.value is error
        assert torch.equal(model(x), expected)
    assert state(model).keys() == before.keys()
    name = type(error).__name__
    assert tree(rec.trace) == [f" !{name}", f" block !{name}", "  block.first", *CALLS]


@functools.cache
def moments(code: CodeType) -> frozenset[int]:
    """Where in a function Ctrl-C can come: as it begins, and after each call."""
    found, before = set(), "RESUME"
    for instruction in dis.get_instructions(code):
        if before == "RESUME" or before.startswith("CALL"):
            found.add(instruction.offset)
        before = instruction.opname
    return frozenset(found)


class Interrupt:
    """Ctrl-C at the n-th moment that the recorder's own Python code is at."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self.enter)

    def __exit__(self, *args: object) -> None:
        sys.settrace(self.before)

    def enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(str(HERE)):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.step

    def step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and frame.f_lasti in moments(frame.f_code):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.step


def interrupted(trace: tv.Trace, model: Noticing, lossless: bool = True) -> None:
    """Check that the trace is whole but for the interrupted calls, which it names."""
    found = rows(trace)
    for row in found:
        above = None if row.parent is None else found[row.parent]
        assert row.error in ("", "KeyboardInterrupt")
        assert above is None or above.path == row.path.rpartition(".")[0]
        if lossless:
            assert above is not None or row.path == "model"
            assert not row.error or above is None or above.error == row.error
    if lossless:
        failed = sum(row.error != "" for row in found if row.path == "model")
        assert model.stopped <= failed <= model.stopped + 1  # or as the call was being noted


@tap_alone
@pytest.mark.parametrize("batch", [4, 1 << 15])
def test_ctrl_c_at_each_moment_of_a_call(
    any_tap: str,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "_BATCH", batch)
    before = standing()
    for number in itertools.count(1, 5 if any_tap == "python" else 3):
        model, interrupt, stopped = Noticing(), Interrupt(number), False
        with tv.recording(model) as rec:
            model(torch.zeros(1))
            try:
                with interrupt:
                    for rows in (1, 2):
                        model(torch.zeros(rows), other=[torch.zeros(1), None])
            except KeyboardInterrupt:
                stopped = True
            model(torch.zeros(9))
        assert stopped == (interrupt.left <= 0)
        assert standing() == before
        # Of a batch that was being written, nothing may be left.
        interrupted(rec.trace, model, lossless=batch > 4)
        if interrupt.left > 0:
            break
    # No Python code of the recorder runs at all, unless something is written.
    assert number > (10 if batch == 4 else 0)


@every_way
def test_ctrl_c_as_a_recording_begins_or_ends(any_tap: str) -> None:
    before = standing()
    for number in itertools.count(1, 2):
        model, interrupt, stopped = nn.ReLU(), Interrupt(number), False
        try:
            with interrupt, tv.recording(model, clock="none"):
                model(torch.zeros(1))
        except KeyboardInterrupt:
            stopped = True
        assert standing() == before
        assert stopped == (interrupt.left <= 0)
        if interrupt.left > 0:
            break
    assert number > 100


@tap_alone
def test_ctrl_c_at_random(any_tap: str) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")
    rng, x, before = random.Random(0), torch.zeros(2), standing()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    gc.disable()  # where a signal would be swallowed
    try:
        for times in range(40):
            model = Noticing()
            with tv.recording(model) as rec, pytest.raises(KeyboardInterrupt):  # noqa: PT012
                if times % 8:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 4e-3))
                else:
                    threading.Timer(rng.uniform(1e-4, 4e-3), _thread.interrupt_main).start()
                until = time.monotonic() + 10
                while time.monotonic() < until:
                    model(x)
            assert standing() == before
            interrupted(rec.trace, model)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        gc.enable()
