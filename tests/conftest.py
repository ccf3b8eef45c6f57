"""Fixtures and hooks for all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import running_browser

# Before torch is imported, here and in what tests start: workers side by side whose threads wait for each other crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before Triton is: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _torch_is_left_as_it_was() -> Iterator[None]:
    """No dispatch mode, nor torch's note of one, outlives a test."""
    yield
    modes = sys.modules.get("torch.utils._python_dispatch")
    assert modes is None or not modes.is_in_torch_dispatch_mode()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, the same for all tests of a file."""
    with running_browser() as found:
        yield found


# The files that take longest, 20 s to 140 s on one core. They begin first: begun last, one keeps a worker busy alone.
SLOWEST = (
    *("test_docs", "test_talker_compile", "test_kernels", "test_cli", "test_huggingface_models", "test_distributed"),
    *("test_talker_parity", "test_dataflow_programs", "test_record_property", "test_record_compilers", "test_perfetto"),
    *("test_example_notebooks", "test_kernel_compilation", "test_thinker_capture", "test_record_kill"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist hand out files in the order of collection, not those with most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first."""
    order = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection, which would search torch's a thousand times."""
    gc.collect()
    gc.freeze()


def pytest_sessionstart() -> None:
    """Restore SIGINT, which shells ignore in background jobs: tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def any_tap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have recordings see calls in the way that `taps.every_way` names."""
    from talkerviz.recorder import recording as recorder
    from talkerviz.recorder.instruments import device_clock
    from talkerviz.recorder.python_device_stamps import PythonDeviceStamps

    way = "tap" if request.param == "tap" else "hooks"
    monkeypatch.setattr(recorder, "choose_way", lambda via: way)
    if request.param == "python":
        monkeypatch.setattr(recorder, "Tap", None)
        monkeypatch.setattr(device_clock, "DeviceStamps", PythonDeviceStamps)
    return str(request.param)


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Check that every patched function of torch is restored when a test ends."""
    from small_model import DYNAMO, PLAIN_CALL, standing
    from torch import nn

    before = standing()
    assert before[0] is before[2] is PLAIN_CALL
    yield
    now = standing()
    nn.Module.__call__, nn.Module._replicate_for_data_parallel = before[:2]
    DYNAMO.unpatched_nn_module_call = before[2]
    assert now == before
