"""Damaged and hostile trace files: one line that names the file, whatever a file holds."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import talkerviz
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from mutations import flow_trace, merged_trace, mutate_blocks, mutate_bytes, mutate_columns, outcomes_of, partial_trace
from sample_trace import call, make_trace, sample_trace

from talkerviz.api import Trace
from talkerviz.trace import TraceError
from talkerviz.trace import event_blocks as blocks
from talkerviz.trace.event_blocks import block, read_blocks
from talkerviz.trace.event_log import read_log
from talkerviz.trace.validation import MAX_DEPTH, DamagedError

BASES: dict[str, Callable[[Path], None]] = {
    "flow.parquet": flow_trace,
    "merged.parquet": merged_trace,
    "run.parquet.partial": partial_trace,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    for name, make in BASES.items():
        make(folder / name)
    return {name: (folder / name).read_bytes() for name in BASES}


def load(path: Path, content: bytes) -> Trace | None:
    """Return the trace that a file holds; None where it is refused, in one line that names it."""
    path.write_bytes(content)
    try:
        return Trace.load(path)
    except TraceError as error:
        said = str(error)
    assert said.startswith(str(path))
    assert "\n" not in said
    return None


@settings(deadline=None, max_examples=examples(60))
@given(seed=st.integers(0, 2**32), name=st.sampled_from(list(BASES)))
def test_any_bytes(seed: int, name: str, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    content = mutate_bytes(files[name], random.Random(seed))
    load(tmp_path_factory.getbasetemp() / name, content)


@settings(deadline=None, max_examples=examples(25))
@given(seed=st.integers(0, 2**32), name=st.sampled_from(list(BASES)))
def test_any_columns(seed: int, name: str, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    """With right checksums: what can be loaded can also be shown."""
    mutate = mutate_blocks if name.endswith(".partial") else mutate_columns
    path = tmp_path_factory.getbasetemp() / name
    if load(path, mutate(files[name], random.Random(seed))) is not None:
        for outcome, said in outcomes_of(path, (["show"], ["tree"], ["render", "-f", "mermaid"])):
            assert outcome in ("fine", "one line, exit 2"), said


@settings(deadline=None, max_examples=examples(100))
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_partial_file_is_seen(
    place: float, bit: int, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(files["run.parquet.partial"])
    content[int(place * len(content))] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "run.parquet.partial"
    found = load(path, bytes(content))
    # Where the last byte is zero now, a machine that went down may have left that: the blocks before are read.
    assert found is None or (content[-1] == 0 and found != load(path, files["run.parquet.partial"]))


def test_a_partial_file_is_read_up_to_its_damage(files: dict[str, bytes], tmp_path: Path) -> None:
    whole = files["run.parquet.partial"]
    path = tmp_path / "run.parquet.partial"
    all_calls = load(path, whole)
    assert all_calls is not None
    at = 0
    for parts in list(read_blocks(whole))[:3]:
        at += len(block(at, parts))
    damaged = bytearray(whole)
    damaged[at + 30] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(TraceError, match=f"behind its first {at:,} bytes.*head -c {at}$"):
        Trace.load(path)
    before = load(path, whole[:at])
    assert before is not None
    assert 0 < len(before.calls) < len(all_calls.calls)
    # A machine that went down leaves zeros where bytes were not written yet.
    for zeros in (3, 24, 5000):
        assert load(path, whole[:at] + bytes(zeros)) == before
    assert load(path, whole[: at + 40] + bytes(5000)) == before


def test_blocks_that_were_moved_removed_or_repeated(files: dict[str, bytes]) -> None:
    whole = files["run.parquet.partial"]
    ends, at = [], 0
    for parts in read_blocks(whole):
        at += len(block(at, parts))
        ends.append(at)
    blocks = [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    for order in ([0, 2, 1], [0, 2], [0, 1, 1], [1]):
        with pytest.raises(DamagedError):
            read_log(b"".join(blocks[place] for place in order))


def edited(path: Path, column: str, values: list[Any]) -> None:
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    field = table.schema.field(place).with_nullable(True)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("parent", [None, None, 1, 3, 1, 4, 1, 6, 1, None, 9], "call 3 has the parent 3"),
        ("parent", [None, None, 1, 2, 1, 4, 1, -6, 1, None, 9], "call 7 has the parent -6"),
        ("depth", [0, 0, 1, 2, 1, 2, 1, 7, 1, 0, 1], "call 7 has the depth 7, .* its parent 6"),
        ("depth", [1, 0, 1, 2, 1, 2, 1, 2, 1, 0, 1], "call 0 has the depth 1, .* a call without parent"),
        ("thread", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4], "call 10 has the thread 4"),
        ("call", [0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 10], "call 1 comes after call 1"),
        ("call", [*range(9), 10, 9], "call 9 comes after call 10"),
        ("call", [None, *range(1, 11)], "values of its column 'call' are missing"),
        ("path", [None] * 11, "values of its column 'path' are missing"),
        ("host_ns", [-5] * 11, "call 0 has the host_ns -5"),
        ("host_self_ns", [2**63 - 1] * 11, "host_self_ns adds up to more"),
        ("frame", [2**60] * 11, f"call 0 has the frame {2**60}"),
        ("host_start_ns", [None] * 11, "call 0 has only one of host_start_ns and host_ns"),
        ("run", [-1] * 11, "call 0 has the run -1"),
        ("inputs_id", [77] * 11, "descriptions of tensors are missing"),
    ],
)
def test_impossible_columns(column: str, values: list[Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    sample_trace().save(path)
    if column == "inputs_id":
        trace = pq.ParquetFile(path)
        tensors = trace.metadata.metadata[b"talkerviz.tensors"]
        edited(path, column, values)
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"talkerviz.tensors": tensors}), path)
    else:
        edited(path, column, values)
    with pytest.raises(TraceError, match=f"s.parquet is damaged: .*{said}"):
        Trace.load(path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("facts", b"null", "its facts are None, not a JSON object"),
        ("facts", b"[" * 100_000, "its facts are nested too deeply"),
        ("facts", b'{"a":' * 100 + b"1" + b"}" * 100, "its facts are nested too deeply"),
        ("facts", b'{"a": "\xff"}', "its facts are no JSON"),
        ("facts", b'{"repeat": "two"}', "the fact 'repeat' cannot be 'two'"),
        ("facts", b'{"warmup_ns": 7}', "the fact 'warmup_ns' cannot be 7"),
        ("facts", b'{"peaks": {"flops": NaN, "bandwidth": 1}}', "the fact 'peaks' cannot be"),
        ("facts", b'{"processes": []}', "the fact 'processes' cannot be"),
        ("modules", b'[[1.5, null, "x", null, []]]', r"module 0 cannot be \[1.5, None, 'x', None, \(\)\]"),
        ("modules", b'{"a": 1}', "its modules are {'a': 1}, not a list"),
        ("modules", b"[[]]", r"module 0 cannot be \[\]"),
        ("flow", b"AAAA", ""),
        ("flow", b"\xff", "Only base64"),
        ("collections", b'{"call": [1]}', "garbage collections have wrong columns"),
    ],
)
def test_impossible_metadata(name: str, text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    sample_trace().save(path)
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, f"talkerviz.{name}".encode(): text}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(TraceError, match=f"s.parquet is damaged: .*{said}"):
        Trace.load(path)


def test_metadata_changed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    sample_trace().save(path)
    content = path.read_bytes()
    assert b'"model": "Net"' in content
    path.write_bytes(content.replace(b'"model": "Net"', b'"model": "Nat"'))
    with pytest.raises(TraceError, match="its metadata do not match their checksum"):
        Trace.load(path)


def test_files_that_claim_more_than_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.parquet"
    sample_trace().save(path)
    table = pq.read_table(path)
    claims = (1 << 36).to_bytes(8, "little") + pa.compress(b"[]", "zstd", asbytes=True)
    metadata = {**table.schema.metadata, b"talkerviz.tensors": base64.b64encode(claims)}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(TraceError, match="descriptions of tensors claim 68,719,476,736 bytes"):
        Trace.load(path)
    monkeypatch.setattr(blocks, "_MIN_BUDGET_BYTES", 1 << 16)
    bomb = block(0, [b"0" * (1 << 20), b"", b""])
    with pytest.raises(DamagedError, match="its blocks claim"):
        read_log(bomb)


def test_calls_too_deep(tmp_path: Path) -> None:
    """Tables take time by depth."""
    count = MAX_DEPTH + 2
    what = np.zeros(count, [("what", "<i4"), ("tensors", "<i4"), ("time", "<i8"), ("value", "<i8")])
    content = b"".join(what[name].tobytes() for name in ("what", "tensors", "time", "value"))
    opening = {"modules": [["m", "M", 0, 0, []]], "facts": {}, "origin_ns": 0, "timed": True}
    names = {"parts": [], "kinds": [], "phases": ["p"], "errors": [], "peers": [], "joined": []}
    log = block(0, [json.dumps(opening).encode()])
    log += block(len(log), [json.dumps({"thread": 0, "first": [0] * 6, **names}).encode(), b"", content])
    path = tmp_path / "deep.parquet.partial"
    path.write_bytes(log)
    with pytest.raises(TraceError, match=f"calls {MAX_DEPTH + 1} levels deep"):
        Trace.load(path)


def test_a_file_written_anew_by_pandas_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    sample_trace().save(path)
    table = pq.read_table(path)
    plain = pa.table(
        [
            column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
            for column in table.drop_columns(["parent"]).columns
        ],
        table.drop_columns(["parent"]).column_names,
    )
    parent = pd.Series(table.column("parent").to_pandas(), dtype="float64")
    plain = plain.append_column("parent", pa.array(parent, from_pandas=True)).append_column("mine", pa.nulls(11))
    pq.write_table(plain.replace_schema_metadata(table.schema.metadata), path)
    assert Trace.load(path) == sample_trace()


def test_the_command_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "s\x1b[31m\u202e.parquet"
    sample_trace().save(Path(name))
    edited(Path(name), "parent", [0] * 11)
    assert talkerviz(monkeypatch, "show", name) == 2
    assert capsys.readouterr().err == "talkerviz: s\\x1b[31m\\u202e.parquet is damaged: call 0 has the parent 0\n"


HOSTILE = "\x1b]0;gone\x07\x9b2J\u202eevil\u2066\u200f\u061c"


def hostile_trace() -> Trace:
    trace = sample_trace()
    calls = trace.calls.assign(
        **{
            name: pd.Categorical([f"=1+1{HOSTILE}" if name == "class" else f"net.{HOSTILE}"] * len(trace.calls))
            for name in ("path", "class", "phase")
        }
    )
    return Trace(calls, trace.modules, {**trace.facts, "weights_note": HOSTILE, "model": HOSTILE, "root": "net"})


def test_nothing_reaches_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hostile.parquet"
    hostile_trace().save(path)
    told = set(HOSTILE) - set("]0;gone2Jevil")
    for command in (
        *(("show", "--by", by) for by in ("module", "class", "phase", "call", "layer", "frame")),
        ("show", "--across", "phase"),
        ("show", "--phase", "nosuch"),
        ("tree",),
        ("diff", str(path)),
        ("render", "-f", "mermaid", "--frame", "77"),
    ):
        talkerviz(monkeypatch, command[0], path, *command[1:])
        said = capsys.readouterr()
        assert not told & set(said.out + said.err), command
    for fmt in ("mermaid", "dot", "markdown", "latex", "html"):
        talkerviz(monkeypatch, "render", path, "-f", fmt, "-o", tmp_path / "chart")
        assert not told & set((tmp_path / "chart").read_text(encoding="utf-8")), fmt
    assert talkerviz(monkeypatch, "report", path, "-o", tmp_path / "report") in (0, None)
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert not {"\u202e", "\u2066", "\u061c"} & set(page)
    assert '\\u202e"' not in page.replace("\\\\u202e", "")


def test_csv_cells_are_no_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "plain", "a=b"]
    rows = sample_trace().calls.iloc[: len(texts)]
    trace = make_trace([])
    trace = Trace(
        rows.assign(path=pd.Categorical(texts), parent=pd.array([pd.NA] * 8, "Int64"), depth=np.int32(0)),
        trace.modules,
        trace.facts,
    )
    trace.save(tmp_path / "s.parquet")
    for command in (
        ("render", tmp_path / "s.parquet", "-f", "csv", "--by", "call"),
        ("query", "SELECT path, -1 AS number FROM calls", tmp_path / "s.parquet", "-f", "csv"),
    ):
        talkerviz(monkeypatch, *command, "-o", tmp_path / "s.csv")
        cells = pd.read_csv(tmp_path / "s.csv", dtype=str, keep_default_na=False)
        column = cells["path" if command[0] == "query" else "module"]
        assert sorted(column) == sorted([f"'{text}" for text in texts[:6]] + texts[6:])
        if command[0] == "query":
            assert set(cells["number"]) == {"-1"}


def test_checksums_are_of_zlib() -> None:
    """As the page of the file's format says."""
    made = block(5, [b"abc"])
    assert made[:4] == b"TVB1"
    assert int.from_bytes(made[8:12], "little") == zlib.crc32(made[24:])
    assert int.from_bytes(made[12:20], "little") == 5
    assert int.from_bytes(made[20:24], "little") == zlib.crc32(made[:20])


@pytest.mark.parametrize("command", [("tree",), ("render", "-f", "dot", "-o", "-")])
def test_calls_that_nest_too_deeply_to_be_drawn_are_one_line(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    depth = 3000
    paths = [".".join(["m", *["c"] * place]) for place in range(depth)]
    calls = [
        call(place, place - 1 if place else None, place, path, "C", 2 * (depth - place), 2)
        for place, path in enumerate(paths)
    ]
    make_trace(calls, root="m").save(tmp_path / "deep.parquet")
    name, *options = command
    assert talkerviz(monkeypatch, name, tmp_path / "deep.parquet", *options) == 2
    assert capsys.readouterr().err == (
        "talkerviz: calls nest too deeply for this: ask for less of the trace, as with --depth, --module or --frame\n"
    )
