"""Ask the traces of many runs or ranks in SQL, without loading them: DuckDB reads what a question needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

_VIEWS = """
CREATE VIEW calls AS SELECT filename AS file, * EXCLUDE (filename)
    FROM read_parquet({files}, filename = true, union_by_name = true);
CREATE VIEW runs AS
    SELECT file_name AS file, (facts ->> '$.process.rank')::INT AS rank,
        (facts ->> '$.process.world_size')::INT AS world_size, facts ->> '$.process.host' AS host,
        facts ->> '$.model' AS model, facts ->> '$.device' AS device, facts ->> '$.dtype' AS dtype,
        facts ->> '$.date' AS date, facts
    FROM (SELECT file_name, decode(value)::JSON AS facts FROM parquet_kv_metadata({files})
        WHERE decode(key) = 'talkerviz.facts');
CREATE VIEW modules AS
    SELECT file, module ->> 0 AS path, module ->> 1 AS class, (module ->> 2)::BIGINT AS parameters,
        (module ->> 3)::BIGINT AS parameter_bytes
    FROM (SELECT file_name AS file, unnest(from_json(decode(value), '["JSON"]')) AS module
        FROM parquet_kv_metadata({files}) WHERE decode(key) = 'talkerviz.modules');
"""
_MEANS_OTHERS = frozenset("*?[")  # in a pattern of files


def query(sql: str, files: Sequence[Path]) -> pa.Table:
    """What one SELECT gives over the views `calls`, `runs` and `modules`.

    `calls` has the columns of [`schema.CALLS`][talkerviz.trace.schema.CALLS], `runs` a row a file with its `facts` as
    JSON and the commonest of them as columns, `modules` those of [`ModuleInfo`][talkerviz.trace.schema.ModuleInfo]; all
    three begin with `file`. Times count from when each recording began. Nothing but these files can be read, and
    nothing be written.

    Args:
        sql: a SELECT, in DuckDB's SQL; also DESCRIBE and SUMMARIZE.
        files: traces.

    Raises:
        ValueError: DuckDB is not installed, there is no such file or it is no trace, or what is wrong with the SQL.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ValueError("query needs DuckDB: pip install 'talkerviz[query]'") from error
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{file}: DuckDB cannot be told of a name that is not UTF-8; rename it") from None
        if not file.is_file():
            raise ValueError(f"{file}: {'is a directory, not a trace file' if file.is_dir() else 'no such file'}")
        if "\\" in str(file) and set(str(file)) & _MEANS_OTHERS:
            raise ValueError(f"{file}: DuckDB cannot be told of a name with a backslash and one of * ? [; rename it")
    names = [str(file) for file in files]
    patterns = [_literally(name) for name in names]
    options: dict[str, str | bool | int | float | list[str]] = {
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "temp_directory": "",
    }
    with duckdb.connect(":memory:", config=options) as connection:
        # Patterns too are looked up among them.
        connection.execute(f"SET allowed_paths = {_list(sorted({*names, *patterns}))}")
        connection.execute("SET enable_external_access = false")
        try:
            connection.execute(_VIEWS.format(files=_list(patterns)))
            known = connection.sql("SELECT file FROM runs").fetchall()
        except duckdb.Error as error:
            raise ValueError(f"a file that is no trace or is damaged: {_said(error)}") from error
        if others := sorted({*names} - {name for (name,) in known}):
            raise ValueError(f"{others[0]}: a Parquet file, but not a talkerviz trace; leave it out")
        connection.execute("SET lock_configuration = true")
        try:
            statements = connection.extract_statements(sql)
            # Others could write into the files that may be read.
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise ValueError("ask one SELECT: nothing else is run here")
            return _named_apart(connection.sql(statements[0].query).to_arrow_table())
        except duckdb.Error as error:
            raise ValueError(_said(error)) from error


def _literally(name: str) -> str:
    """A file's name as a pattern that fits only it."""
    return "".join(f"[{char}]" if char in _MEANS_OTHERS else char for char in name)


def _list(texts: Sequence[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


def _said(error: Exception) -> str:
    """DuckDB's message, without the picture of where in the SQL it is."""
    return " ".join(str(error).partition("\nLINE ")[0].split())


def _named_apart(table: pa.Table) -> pa.Table:
    """Columns of one name have numbers behind it, as DuckDB itself does when it makes a table."""
    names: list[str] = []
    for name in table.column_names:
        number, apart = 0, name
        while apart in names:
            number += 1
            apart = f"{name}_{number}"
        names.append(apart)
    return table.rename_columns(names)
