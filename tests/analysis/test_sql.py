"""SQL over many traces: what it finds, in every format, and that it can do nothing else."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Capture, talkerviz
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from rank_traces import meeting, rank_traces
from sample_trace import sample_trace

from talkerviz.analysis.sql import query
from talkerviz.api import Trace
from talkerviz.render.tables.query_result import ANSWERS, answer_cells, render_answer

pytest.importorskip("duckdb", reason="needs duckdb: pip install 'talkerviz[query]'")

SUMS = "SELECT rank, class, count(*) AS calls, sum(host_ns) AS total FROM calls GROUP BY ALL ORDER BY ALL"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Traces of three ranks."""
    paths = []
    for rank, trace in enumerate(rank_traces([meeting([1_000, 2_000, 3_000], 50)], [0, 0, 0])):
        paths.append(tmp_path / f"run.rank{rank}.parquet")
        trace.save(paths[-1])
    return paths


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One that an example may fill."""
    made = tmp_path_factory.mktemp("query")
    yield made
    shutil.rmtree(made)


def test_calls_of_all_files(files: list[Path]) -> None:
    found = query(SUMS, files).to_pylist()
    whole = pd.concat([Trace.load(path).calls for path in files])
    expected = whole.groupby(["rank", "class"], observed=True)["host_ns"].agg(["size", "sum"])
    assert {(row["rank"], row["class"]): (row["calls"], int(row["total"])) for row in found} == {
        of: tuple(row) for of, row in zip(expected.index, expected.itertuples(index=False), strict=True)
    }
    by_file = query("SELECT file, any_value(rank) AS rank FROM calls GROUP BY file ORDER BY file", files).to_pylist()
    assert by_file == [{"file": str(path), "rank": rank} for rank, path in enumerate(files)]


def test_runs_and_modules(files: list[Path]) -> None:
    runs = query("SELECT file, rank, world_size, host, model, facts ->> '$.process.backend' AS b FROM runs", files)
    assert sorted(row["rank"] for row in runs.to_pylist()) == [0, 1, 2]
    assert {tuple(row.values())[2:] for row in runs.to_pylist()} == {
        (3, f"host{rank}", "Net", "gloo") for rank in range(3)
    }
    modules = query("SELECT DISTINCT path, class, parameters, parameter_bytes FROM modules ORDER BY path", files)
    assert [row["path"] for row in modules.to_pylist()] == ["net", "net.layers.0.all_reduce"]
    assert modules.schema.types[2:] == [pa.int64(), pa.int64()]


def test_straggling_by_sql(files: list[Path]) -> None:
    sql = """SELECT arg_max(rank, host_start_ns) AS last, max(host_start_ns) - min(host_start_ns) AS apart
        FROM calls WHERE peers IS NOT NULL GROUP BY peers, collective"""
    assert query(sql, files).to_pylist() == [{"last": 2, "apart": 2_000}]


def test_files_of_other_columns(files: list[Path], tmp_path: Path) -> None:
    pq.write_table(pq.read_table(files[0]).drop_columns(["rank", "peers"]), tmp_path / "old.parquet")
    found = query("SELECT count(*) AS n, count(rank) AS ranked FROM calls", [files[0], tmp_path / "old.parquet"])
    assert found.to_pylist() == [{"n": 4, "ranked": 2}]


def test_several_hundred(tmp_path: Path) -> None:
    sample_trace().save(tmp_path / "0.parquet")
    paths = [tmp_path / f"{number}.parquet" for number in range(300)]
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    found = query("SELECT count(*) AS calls, count(DISTINCT file) AS files FROM calls", paths).to_pylist()
    assert found == [{"calls": 300 * len(sample_trace().calls), "files": 300}]


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, other=NAMES)
@example(name="?\\", other="a")
def test_whatever_files_are_called(name: str, other: str, folder: Path) -> None:
    for old in folder.iterdir():
        old.unlink()
    sample_trace().save(folder / name)
    # One that a name with `*` would be taken for as well.
    sample_trace().save(folder / f"{other}x")
    if "\\" in name and set(name) & set("*?["):
        with pytest.raises(ValueError, match="cannot open a name with a backslash"):
            query("SELECT 1", [folder / name])
        return
    found = query("SELECT DISTINCT file FROM calls UNION SELECT file FROM runs", [folder / name]).to_pylist()
    assert found == [{"file": str(folder / name)}]


@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sql=st.one_of(st.text(max_size=60), st.sampled_from(["SELECT", "(", "SELECT '", "--", ";", "SELECT 1; SELECT 2"]))
)
def test_any_sql_answers_or_says_why(sql: str, folder: Path) -> None:
    path = folder / "run.parquet"
    if not path.exists():
        sample_trace().save(path)
    said = "an answer"
    try:
        query(sql, [path])
    except ValueError as error:
        said = str(error)
    assert said.strip()
    assert "\n" not in said


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{folder}/evil.csv'",
        "COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
        "SELECT * FROM read_csv('{folder}/secret.csv')",
        "SELECT * FROM read_text('{folder}/secret.csv')",
        "SELECT * FROM read_parquet('{folder}/other.parquet')",
        "SELECT * FROM read_parquet('{folder}/*.parquet')",
        "SELECT * FROM '{folder}/other.parquet'",
        "SELECT * FROM glob('{folder}/*')",
        "ATTACH '{folder}/evil.db'",
        "EXPORT DATABASE '{folder}/evil'",
        "SET enable_external_access = true",
        "SET allowed_paths = ['{folder}/other.parquet']",
        "RESET allowed_paths",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM here",  # a variable of Python's
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW calls",
        "SELECT 1; COPY (SELECT 1) TO '{folder}/evil.csv'",
        "",
    ],
)
def test_nothing_else_is_read_and_nothing_written(sql: str, tmp_path: Path) -> None:
    here = pd.DataFrame({"x": [1]})
    assert len(here) == 1
    for name in ("run.parquet", "other.parquet"):
        sample_trace().save(tmp_path / name)
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r".") as error:
        query(sql.format(folder=tmp_path, file=tmp_path / "run.parquet"), [tmp_path / "run.parquet"])
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "sql", ["SELECT 1 AS a", "FROM calls LIMIT 1", "DESCRIBE calls", "SUMMARIZE calls", "VALUES (1)"]
)
def test_what_may_be_asked(sql: str, files: list[Path]) -> None:
    assert query(sql, files).num_rows > 0


def test_what_is_no_trace(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    for path, said in (
        (tmp_path / "text", "damaged or not a trace.*text"),
        (tmp_path / "other.parquet", "other.parquet: a Parquet file, but not a talkerviz trace"),
        (tmp_path / "none.parquet", "none.parquet: no such file"),
        (tmp_path, "is a directory, not a trace file"),
    ):
        with pytest.raises(ValueError, match=said):
            query("SELECT 1", [*files, path])


def test_without_duckdb(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ValueError, match=r"pip install 'talkerviz\[query\]'"):
        query("SELECT 1", files)


EVERY_TYPE = """SELECT 12345678 AS n, 0.25::DOUBLE AS f, 'nan'::DOUBLE AS nan, NULL AS nothing, true AS yes,
    'a,"b' AS t, sum(x) AS s, 170141183460469231731687303715884105727::HUGEINT AS huge, [1, NULL] AS l,
    {'a': [1.5]} AS d, DATE '2026-01-02' AS day, 1 AS x, 2 AS x, 'é|_*' AS text, 1.5::DECIMAL(5, 2) AS dec
    FROM range(3) r(x)"""


def test_formats(files: list[Path]) -> None:
    answer = query(EVERY_TYPE, files)
    rows: list[dict[str, Any]] = json.loads(render_answer(answer, "json", ""))
    assert rows == [
        {
            "n": 12345678,
            "f": 0.25,
            "nan": None,
            "nothing": None,
            "yes": True,
            "t": 'a,"b',
            "s": 3,
            "huge": pytest.approx(1.7e38, rel=0.01),
            "l": [1, None],
            "d": {"a": ["1.5"]},
            "day": "2026-01-02",
            "x": 1,
            "x_1": 2,
            "text": "é|_*",
            "dec": 1.5,
        }
    ]
    (line,) = csv.DictReader(io.StringIO(render_answer(answer, "csv", "").decode()))
    assert (line["n"], line["s"], line["l"], line["d"], line["t"], line["nothing"]) == (
        "12345678",
        "3",
        "[1, null]",
        '{"a": ["1.5"]}',
        'a,"b',
        "",
    )
    read = pq.read_table(io.BytesIO(render_answer(answer, "parquet", "")))
    assert read["s"].to_pylist() == [3]
    assert read["l"].to_pylist() == [[1, None]]
    cells = answer_cells(answer)
    assert cells.cells.iloc[0].tolist()[:7] == ["12,345,678", "0.25", "nan", "", "True", 'a,"b', "3"]
    assert cells.numbers[:3] == (True, True, True)
    text = render_answer(answer, "markdown", "SELECT *\nFROM x").decode()
    assert "**SELECT \\* FROM x**" in text
    assert "é\\|\\_\\*" in text


@pytest.mark.parametrize("fmt", ANSWERS)
def test_no_rows(fmt: str, files: list[Path]) -> None:
    answer = query("SELECT path, host_ns FROM calls WHERE false", files)
    assert answer.column_names == ["path", "host_ns"]
    assert render_answer(answer, fmt, "")


def test_parquet_cannot_hold_everything(files: list[Path]) -> None:
    with pytest.raises(ValueError, match="-f parquet"):
        render_answer(query("SELECT INTERVAL 1 DAY AS i", files), "parquet", "")


def test_cli(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert talkerviz(monkeypatch, "query", SUMS, *files) == 0
    shown = capsys.readouterr().out
    assert "all_reduce" in shown
    assert "2,050" in shown
    assert talkerviz(monkeypatch, "query", SUMS, *files, "-f", "csv", "-o", tmp_path / "sums.csv") == 0
    assert (tmp_path / "sums.csv").read_text().startswith('"rank","class","calls","total"\n0,"Net",1,2250\n')
    assert talkerviz(monkeypatch, "query", "SELECT i FROM range(500) r(i)", files[0]) == 0
    assert "300 more rows" in capsys.readouterr().out
    for args in (
        ("SELECT nothing FROM calls", files[0]),
        ("SELECT 1", tmp_path / "none.parquet"),
        ("SELECT 1", files[0], "-f", "yaml"),
        ("SELECT 1", files[0], "-o", tmp_path / "x"),
    ):
        assert talkerviz(monkeypatch, "query", *args) == 2
        assert capsys.readouterr().err.count("\n") == 1
