"""The Trace and its file."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.trace import TensorInfo, TraceError
from talkerviz.trace.calls_table import calls_frame

names = st.text(max_size=12)
tensors = st.lists(
    st.builds(
        TensorInfo,
        name=names,
        shape=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
        dtype=st.sampled_from(["float32", "bfloat16", "int64"]),
        device=st.sampled_from(["cpu", "cuda:1", "meta"]),
        copies=st.integers(1, 2**40),
    ),
    max_size=3,
).map(tuple)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "up": st.integers(0, 9),
            "thread": st.integers(0, 3),
            "path": names,
            "class": names,
            "phase": st.none() | names,
            "frame": st.none() | st.integers(0, 9),
            "step": st.none() | st.integers(0, 14),
            "inputs": tensors,
            "outputs": tensors,
            "times": st.none() | st.tuples(*[st.integers(0, 2**58)] * 3),
            "error": st.none() | names,
        }
    ),
    max_size=8,
)


def trace_of(rows: list[dict]) -> Trace:
    """Return a trace of these rows; `up` says how many rows before each its parent stands, 0 for none."""
    for number, row in enumerate(rows):
        up, times = row.pop("up"), row.pop("times")
        row |= dict(zip(("host_start_ns", "host_ns", "host_self_ns"), times or (None,) * 3, strict=True))
        parent = number - up if 0 < up <= number else None
        row |= {"parent": parent, "depth": 0}
        if parent is not None:
            row |= {"depth": rows[parent]["depth"] + 1, "thread": rows[parent]["thread"]}
    columns = {name: pd.Series([row[name] for row in rows], dtype=object) for name in rows[0]}
    return Trace(calls_frame({"call": range(len(rows)), **columns}), (), {"note": "made"})


@settings(deadline=None)
@given(rows.filter(bool))
def test_any_trace_loads_back_equal(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("trace") / "run.parquet"
    trace = trace_of(rows)
    trace.save(path)
    assert Trace.load(path) == trace


@pytest.fixture
def recorded():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return tv.record(model, lambda: [model(torch.zeros(n, 2)) for n in (1, 2)])


def test_recorded_trace_loads_back_equal(recorded, tmp_path):
    recorded.save(tmp_path / "run.parquet")
    assert Trace.load(tmp_path / "run.parquet") == recorded
    assert [path.name for path in tmp_path.iterdir()] == ["run.parquet"]


def test_file_opens_in_pandas_as_it_is(recorded, tmp_path):
    recorded.save(tmp_path / "run.parquet")
    frame = pd.read_parquet(tmp_path / "run.parquet")
    assert frame["path"].tolist() == recorded.calls["path"].tolist()
    assert frame["inputs"][0][0]["shape"].tolist() == [1, 2]


def test_select(recorded):
    assert recorded.select(frame=1).calls["call"].tolist() == [3, 4, 5]
    assert recorded.select(depth=0).calls["path"].tolist() == ["model", "model"]
    assert recorded.select(phase="forward") == recorded
    with pytest.raises(ValueError, match="no phase 'decode' in this trace: choose from forward"):
        recorded.select(phase="decode")
    with pytest.raises(ValueError, match="no frame 2 in this trace: it has frames 0 to 1"):
        recorded.select(frame=2)


def test_files_that_are_no_traces(recorded, tmp_path):
    path = tmp_path / "run.parquet"
    recorded.save(path)
    whole = path.read_bytes()

    def refused(content: bytes, why: str) -> None:
        path.write_bytes(content)
        with pytest.raises(TraceError, match=why) as caught:
            Trace.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    for length in (5, len(whole) // 2, len(whole) - 1):
        refused(whole[:length], "cut short or damaged")
    refused(b"", "empty file")
    refused(b"# notes\n", "not a talkerviz trace")
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(TraceError, match="a Parquet file, but not a talkerviz trace"):
        Trace.load(path)
    with pytest.raises(TraceError, match="no such file"):
        Trace.load(tmp_path / "missing.parquet")
    with pytest.raises(TraceError, match="is a directory"):
        Trace.load(tmp_path)
