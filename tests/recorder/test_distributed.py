"""Several processes, for real: what each records of the collectives between them, and how their clocks are compared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import pytest
import torch
import torch.distributed as dist
from command_line import Capture, talkerviz
from repo_paths import HELPERS, ROOT
from torch import nn

from talkerviz.analysis.collective_waits import collective_waits, waits_by_rank
from talkerviz.analysis.stragglers import stragglers
from talkerviz.api import Trace
from talkerviz.recorder.distributed.clock_sync import exchange_clocks
from talkerviz.recorder.distributed.collectives import ranges_text
from talkerviz.recorder.distributed.process import Process, file_of_rank, this_process
from talkerviz.recorder.record import record
from talkerviz.trace.collectives import ranks_in
from talkerviz.trace.merge import merge

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

AHEAD_NS = 5_000_000_000


def torchrun(processes: int, *args: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*command, *map(str, args)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `ranks_child.py` on two processes, and return its output."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(2, HELPERS / "ranks_child.py", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder with the traces of a pipeline of four, and what was printed."""
    folder = tmp_path_factory.mktemp("four")
    args = ("-m", "talkerviz", "trace", "-o", folder / "run.parquet", "examples.pipeline:stage")
    done = torchrun(4, *args)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def loaded(folder: Path, name: str, ranks: int = 2) -> list[Trace]:
    return [Trace.load(folder / f"{name}.rank{rank}.parquet") for rank in range(ranks)]


def said(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"said{rank}.json").read_text())
    return found


def rows(trace: Trace) -> list[tuple[str, str, int]]:
    """List a trace's collectives: path, ranks without the name of their group, number since the recording began."""
    found = trace.calls[trace.calls["peers"].notna()]
    numbers = found["collective"] - found.groupby("peers", observed=True)["collective"].transform("min")
    peers = found["peers"].astype(object).str.replace(r" group \S+", "", regex=True)
    return list(zip(found["path"], peers, numbers, strict=True))


EVERY = [
    ("model.inner.all_reduce", "0-1", 0),
    ("model.all_reduce", "{own}", 0),
    ("model.all_gather", "0-1", 1),
    ("model.all_gather", "0-1", 2),
    ("model.reduce_scatter", "0-1", 3),
    ("model.all_to_all", "0-1", 4),
    ("model.broadcast", "0-1", 5),
    ("model.reduce", "0-1", 6),
    ("model.gather", "0-1", 7),
    ("model.scatter", "0-1", 8),
    ("model.barrier", "0-1", 9),
    ("model.{first}", "0>1 tag 7", 0),
    ("model.{second}", "1>0", 0),
    ("model.all_reduce", "0-1", 10),
    ("model.wait", "1>0", 0),
    ("model.wait", "0-1", 10),
    ("model.all_reduce", "0-1", 11),
    ("model.wait", "0-1", 11),
    ("model.all_gather", "0-1", 12),
    ("model.wait", "0-1", 12),
]


def test_every_kind(two: Path) -> None:
    for rank, (trace, first, second) in enumerate(
        zip(loaded(two, "kinds"), ("send", "recv"), ("recv", "send"), strict=True)
    ):
        names = {"own": rank, "first": first, "second": second}
        assert rows(trace) == [(path.format(**names), peers.format(**names), n) for path, peers, n in EVERY]
        calls = trace.calls
        assert (calls["rank"] == rank).all()
        kinds = calls["class"].astype(object)
        assert (kinds == calls["path"].str.rpartition(".")[2].where(calls["peers"].notna(), kinds)).all()
        inner = calls[calls["path"] == "model.inner"]
        assert calls["parent"][calls["path"] == "model.inner.all_reduce"].tolist() == inner["call"].tolist()
        assert (inner["host_self_ns"] < inner["host_ns"]).all()
        assert calls["error"].isna().all()


def test_tensors_of_collectives(two: Path) -> None:
    calls = loaded(two, "kinds")[0].calls

    first = calls["collective"][calls["peers"] == "0-1"].min()

    def shapes(path: str, number: int, name: str) -> list[str]:
        found = calls[(calls["path"] == path) & (calls["collective"] == first + number) & (calls["peers"] == "0-1")]
        return [f"{tensor.name} {tensor.shape_text}" for tensor in found[name].iloc[0]]

    assert shapes("model.all_gather", 1, "inputs") == ["0 4"]
    assert shapes("model.all_gather", 1, "outputs") == ["0 4", "1 4"]
    assert shapes("model.all_gather", 2, "outputs") == ["output 8"]
    assert shapes("model.reduce_scatter", 3, "outputs") == ["output 2"]
    assert shapes("model.scatter", 8, "inputs") == ["0 4", "1 4"]
    # What is begun and waited for later gives its results then.
    assert shapes("model.all_reduce", 10, "inputs") == ["0 4"]
    assert shapes("model.all_reduce", 10, "outputs") == []
    assert shapes("model.wait", 10, "outputs") == ["output 4"]


def test_nothing_is_left_in_torch(two: Path) -> None:
    for rank in range(2):
        found = said(two, rank)
        assert not found["untouched too soon"]  # or it says nothing
        assert found["untouched"]
        assert found["untouched after an error"]


def test_recordings_in_each_other(two: Path) -> None:
    outer, inner = loaded(two, "outer")[1], loaded(two, "kinds")[1]
    assert [path for path, _, _ in rows(outer)] == 2 * [path for path, _, _ in rows(inner)]
    assert [number for _, peers, number in rows(outer) if peers == "0-1" and number >= 13][:1] == [13]


def test_one_that_fails(two: Path) -> None:
    for trace in loaded(two, "wrong"):
        last = trace.calls.iloc[-1]
        assert last["path"] == "model.all_gather"
        assert last["error"] == trace.calls["error"].iloc[0] == said(two, 0)["raised"]


def test_compiled_code(two: Path) -> None:
    for trace in loaded(two, "compiled"):
        assert rows(trace) == [("model.all_reduce", "0-1", 0), ("model.wait", "0-1", 0)]


def test_who_holds_others_up_is_a_call(two: Path) -> None:
    for trace in loaded(two, "written"):
        calls = trace.calls
        recorder = calls[calls["class"] == "recorder"]
        assert len(recorder) > 2
        assert (recorder["host_ns"] > 0).all()
        assert recorder["peers"].isna().all()


def test_a_killed_rank_has_what_it_wrote(two: Path) -> None:
    whole = loaded(two, "written")[0].calls
    half = Trace.load(two / "half.rank0.parquet.partial").calls
    assert 0 < len(half) < len(whole)
    columns = ["path", "peers", "collective", "rank"]
    assert half[columns].astype(object).equals(whole[columns].iloc[: len(half)].astype(object))


@pytest.mark.parametrize("name", ["plain", "dtensor"])
def test_tensor_parallel(name: str, two: Path) -> None:
    one, other = loaded(two, name)
    of_layers = [path for path, _, _ in rows(one) if path.startswith("model.layers")]
    place = "" if name == "plain" else ".down"
    assert of_layers == [f"model.layers.{layer}{place}.all_reduce" for layer in range(4)] * 4
    assert rows(one) == rows(other)
    # DTensor's results are waited for where they are used.
    assert ("model.wait" in {path for path, _, _ in rows(one)}) == (name == "dtensor")
    merged = merge([one, other])
    found = waits_by_rank(collective_waits(merged))
    assert len(found) == 2 * 16
    assert (found["wait_ns"] >= 0).all()
    assert (found["end_ns"] >= found["last_ns"]).all()
    assert (found["bytes"] == 128 * 512 * 4).all()
    assert merged.facts["clocks"] == {
        "shift_ns": merged.facts["clocks"]["shift_ns"],
        "error_ns": [0, 0],
        "by": ["one host's clock"],
        "early_ns": 0,
        "mispaired": 0,
    }


@pytest.mark.parametrize("name", ["plain", "dtensor"])
def test_flow_goes_through_collectives(name: str, two: Path) -> None:
    trace = Trace.load(two / f"{name}flow.rank1.parquet")
    assert trace.flow is not None
    path = dict(zip(trace.calls["call"], trace.calls["path"], strict=True))
    ops = [
        (path.get(call, ""), name) for call, name in zip(trace.flow.ops["call"], trace.flow.ops["name"], strict=True)
    ]
    edges = {(ops[s], ops[t]) for s, t in zip(trace.flow.edges["source"], trace.flow.edges["target"], strict=True)}
    down = ("model.layers.0.down", "linear")
    reduced = (f"model.layers.0{'' if name == 'plain' else '.down'}.all_reduce", "all_reduce")
    assert (down, reduced) in edges
    assert (reduced, ("model", "add")) in edges
    assert (down, ("model", "add")) not in edges


def test_cost_of_collectives(two: Path) -> None:
    calls = Trace.load(two / "plaincost.rank0.parquet").calls
    moved = calls[calls["class"] == "all_reduce"]
    assert (moved["flops"] == 0).all()
    assert (moved["bytes_read"] == 128 * 512 * 4).all()
    assert calls["flops"].notna().all()


def test_facts_and_files(two: Path) -> None:
    for rank, trace in enumerate(loaded(two, "kinds")):
        process = trace.facts["process"]
        assert (process["rank"], process["local_rank"], process["world_size"]) == (rank, rank, 2)
        assert process["backend"] == "gloo"
        assert process["host"]
        assert said(two, rank)["file"] == f"kinds.rank{rank}.parquet"
        assert "offset_ns" not in process  # on one host there is nothing to ask
    assert len({trace.facts["process"]["run_id"] for trace in loaded(two, "kinds") + loaded(two, "plain")}) == 1


def test_two_groups_over_the_same_ranks(two: Path) -> None:
    traces = loaded(two, "groups")
    in_order = [list(dict.fromkeys(trace.calls["peers"].dropna())) for trace in traces]
    assert len(in_order[0]) == 2
    assert in_order[0] == in_order[1][::-1]
    found = collective_waits(merge(traces))
    assert (found.attrs["left_out"], found.attrs["mispaired"], found.attrs["unseen"]) == (0, 0, 0)
    assert len(waits_by_rank(found)) == 2 * 2 * 3


def test_ranks_that_begin_and_end_at_other_places_are_matched(two: Path) -> None:
    first, second = loaded(two, "late")
    numbers = first.calls["collective"].dropna().tolist()
    assert len(numbers) == 6
    assert second.calls["collective"].dropna().tolist() == numbers[2:5]
    merged = merge([first, second])
    found = collective_waits(merged)
    assert (found.attrs["left_out"], found.attrs["mispaired"]) == (3, 0)
    assert (merged.facts["clocks"]["early_ns"], merged.facts["clocks"]["mispaired"]) == (0, 0)


def test_a_rank_that_does_not_record_is_not_waited_for(two: Path) -> None:
    assert said(two, 0)["seconds alone"] < 5
    # Nor is the first file of this name overwritten.
    assert said(two, 0)["again"] == "late.2.rank0.parquet"
    assert rows(Trace.load(two / "late.2.rank0.parquet")) == [("model.all_reduce", "0-1", 0)]


def test_waits_of_ddp_are_told_by_arrival(two: Path) -> None:
    found = stragglers(merge(loaded(two, "ddp")))
    assert found.straggler == 1
    assert found.sentence.startswith("Rank 1 is the straggler")
    assert found.ranks["lag_ns"][0] >= 3 * 50_000_000 * 0.8
    assert any("so do DDP's" in note for note in found.notes)


def test_the_exchange_finds_a_clock_that_is_ahead(two: Path) -> None:
    for offset, error in said(two, 1)["clocks"]:
        assert abs(offset + AHEAD_NS) <= error
        assert 0 < error < 1_000_000_000
    assert said(two, 0)["clocks"] == [[0, 0], [0, 0]]


def test_who_does_not_come_is_not_waited_for() -> None:
    store = dist.HashStore()
    assert exchange_clocks(store, 1, 2, perf_counter_ns, seconds=0.05) is None
    assert exchange_clocks(store, 0, 3, perf_counter_ns, seconds=0.05) == (0, 0)


def test_clocks_of_three() -> None:
    store, found = dist.HashStore(), {}
    ahead = [0, 7_000_000_000, -3_000_000_000]

    def take_part(rank: int) -> None:
        found[rank] = exchange_clocks(store, rank, 3, lambda: perf_counter_ns() + ahead[rank])

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(3):
        offset, error = found[rank] or (None, None)
        assert offset is not None
        assert error is not None
        assert abs(offset + ahead[rank]) <= error


def test_pipeline(four: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    folder, printed = four
    names = [f"run.rank{rank}.parquet" for rank in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == names
    # Rank 0 alone says something.
    assert len(re.findall("Time by phase", printed)) == 1
    assert f"-> {folder / names[0]}" in printed.replace("\n", "")
    traces = loaded(folder, "run", 4)
    for rank, trace in enumerate(traces):
        peers = [peers for _, peers, _ in rows(trace)]
        assert set(peers) == {f"{one}>{one + 1}" for one in (rank - 1, rank) if 0 <= one < 3}
        assert trace.flow is not None  # of the run that watches tensors, which all ranks make
    assert talkerviz(monkeypatch, "merge", *(folder / name for name in names), "-o", folder / "all.parquet") == 0
    assert re.search(r"198 calls of 4 ranks -> .*all\.parquet", capsys.readouterr().out.replace("\n", ""))
    merged = Trace.load(folder / "all.parquet")
    found = collective_waits(merged)
    assert (found.attrs["left_out"], found.attrs["out_of_step"]) == (0, 0)
    assert found[["peers", "collective"]].drop_duplicates().shape[0] == 3 * 6
    (folder / "all.parquet").unlink()


def test_stdout_is_not_shared(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "-o", "-") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_process_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert this_process() is None
    monkeypatch.setenv("RANK", "3")
    assert this_process() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert this_process() == Process(3, 4, None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert this_process() == Process(3, 4, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert this_process() is None


def test_names_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert file_of_rank(Path("a/run.parquet"), Process(2, 4, None)) == Path("a/run.rank2.parquet")
    assert file_of_rank(Path("a/run.parquet"), Process(2, 4, None)) == Path("a/run.2.rank2.parquet")
    assert file_of_rank(Path("a/run"), Process(0, 4, None)) == Path("a/run.rank0")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert file_of_rank(Path("b/run.parquet"), Process(2, 4, None)) == Path("b/run.restart1.rank2.parquet")
    assert file_of_rank(Path("a/run.parquet"), None) == Path("a/run.parquet")


@pytest.mark.parametrize(
    ("ranks", "text"), [([0], "0"), ([0, 1], "0-1"), ([3, 1, 0, 2, 7], "0-3,7"), ([1, 3, 5], "1,3,5"), ([], "")]
)
def test_peers(ranks: list[int], text: str) -> None:
    assert ranges_text(ranks) == text
    if ranks:
        assert ranks_in(text) == ranks_in(f"{text} group 5") == sorted(ranks)
    assert (ranks_in("0>1"), ranks_in("12>3 group 2 tag 7"), ranks_in("*>3")) == ([0, 1], [12, 3], [])


def test_one_process_has_none_of_it() -> None:
    model = nn.Linear(2, 2)
    trace = record(model, lambda: model(torch.ones(1, 2)))
    assert "process" not in trace.facts
    assert trace.calls["rank"].tolist() == [0]
    assert trace.calls[["peers", "collective"]].isna().all(axis=None)
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("c10d::allreduce_", "BackendSelect")
