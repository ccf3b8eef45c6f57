"""Kernel time of calls that were captured into CUDA graphs, from made-up profiles."""

from __future__ import annotations

from typing import Any

import pytest

from talkerviz.recorder.instruments.kernel_time import busy_until_edges, captured_until_edges

THREAD = 7


def note(at: float, name: str = "talkerviz edge") -> dict[str, Any]:
    return {"cat": "user_annotation", "name": name, "ts": at, "dur": 0.1, "tid": THREAD}


def launch(at: float, number: int, name: str = "cudaLaunchKernel") -> dict[str, Any]:
    return {"cat": "cuda_runtime", "name": name, "ts": at, "tid": THREAD, "args": {"correlation": number}}


def ran(at: float, time: float, number: int, node: int | None = None, stream: int = 1) -> dict[str, Any]:
    arguments = {"correlation": number, "device": 0, "stream": stream}
    arguments |= {} if node is None else {"graph node id": node}
    return {"cat": "kernel", "name": "k", "ts": at, "dur": time, "tid": 0, "args": arguments}


# An outer call of two inner ones; the first launches two kernels, and the second one.
CAPTURE = [
    note(10, "talkerviz capture 0"), note(11), note(12), launch(13, 1), launch(14, 2, "cudaMemcpyAsync"), note(15),
    note(16), launch(17, 3, "cuLaunchKernelEx"), launch(17.5, 4, "cudaEventRecordWithFlags"), note(18), note(19),
    note(20, "talkerviz captured"),
]  # fmt: skip


def replay(at: float, number: int, times: list[float], nodes: list[int] | None = None) -> list[dict[str, Any]]:
    events = [note(at, "talkerviz replay 0"), launch(at + 1, number, "cudaGraphLaunch")]
    for index, time in enumerate(times):
        events.append(ran(at + 10 + 100 * index, time, number, nodes and nodes[index]))
    return events


def test_kernels_of_a_replay_are_those_that_were_captured_in_their_order() -> None:
    events = [note(1), note(2), *CAPTURE, *replay(1000, 20, [5, 2, 30]), *replay(2000, 21, [7, 4, 40]), note(3000)]
    capture, until = captured_until_edges({"traceEvents": events})
    assert capture.tolist() == [-1, -1, 0, 0, 0, 0, 0, 0, -1]
    # The mean of both replays: 6 + 3 microseconds in the first inner call, 35 in the second.
    assert until[2:8].tolist() == [0, 0, 9000, 9000, 44000, 44000]
    # A call that replays the graph has the time of all its kernels.
    assert busy_until_edges({"traceEvents": events}).tolist() == [0] * 8 + [88_000]


def test_the_numbers_of_nodes_tell_the_order_where_streams_run_side_by_side() -> None:
    events = [*CAPTURE, *replay(1000, 20, [30, 5, 2], nodes=[103, 101, 102])]
    _, until = captured_until_edges({"traceEvents": events})
    assert until.tolist() == [0, 0, 7000, 7000, 37000, 37000]


@pytest.mark.parametrize("replays", [[], replay(1000, 20, [5, 2])])
def test_where_the_kernels_cannot_be_matched_nothing_is_known(replays: list[dict[str, Any]]) -> None:
    capture, until = captured_until_edges({"traceEvents": [*CAPTURE, *replays]})
    assert capture.tolist() == [0] * 6
    assert until.tolist() == [-1] * 6


def test_a_graph_captured_again_has_kernels_of_its_own() -> None:
    later = [
        note(3000, "talkerviz capture 1"), note(3001), launch(3002, 30), note(3003), note(3004, "talkerviz captured"),
        note(3005, "talkerviz replay 1"), launch(3006, 31, "cudaGraphLaunch"), ran(3010, 8, 31),
    ]  # fmt: skip
    capture, until = captured_until_edges({"traceEvents": [*CAPTURE, *replay(1000, 20, [5, 2, 30]), *later]})
    assert capture.tolist() == [0] * 6 + [1] * 2
    assert until.tolist() == [0, 0, 7000, 7000, 37000, 37000, 0, 8000]
