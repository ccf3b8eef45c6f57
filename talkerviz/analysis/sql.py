"""SQL queries over trace files with DuckDB, which reads only the columns that a query needs."""

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
_WILDCARDS = frozenset("*?[")  # of DuckDB's file patterns


def query(sql: str, files: Sequence[Path]) -> pa.Table:
    """Run one SELECT over the views `calls`, `runs` and `modules`.

    `calls` has the columns of [`schema.CALLS`][talkerviz.trace.schema.CALLS]; `runs` has a row a file, with `facts` as
    JSON and common facts as columns; `modules` has the fields of [`ModuleInfo`][talkerviz.trace.schema.ModuleInfo].
    The first column of each view is `file`. Times count from the start of each recording. The query can read only these
    files, and write nothing.

    Args:
        sql: a SELECT, DESCRIBE or SUMMARIZE in DuckDB's SQL.
        files: trace files.

    Returns:
        The result; duplicate column names get a number.

    Raises:
        ValueError: DuckDB is not installed, a file does not exist or is no trace, or the SQL is wrong.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ValueError("query needs DuckDB: pip install 'talkerviz[query]'") from error
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{file}: DuckDB cannot open a name that is not UTF-8; rename the file") from None
        if not file.is_file():
            raise ValueError(f"{file}: {'is a directory, not a trace file' if file.is_dir() else 'no such file'}")
        if "\\" in str(file) and set(str(file)) & _WILDCARDS:
            raise ValueError(f"{file}: DuckDB cannot open a name with a backslash and one of * ? [; rename the file")
    names = [str(file) for file in files]
    patterns = [_escape_pattern(name) for name in names]
    options: dict[str, str | bool | int | float | list[str]] = {
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "temp_directory": "",
    }
    with duckdb.connect(":memory:", config=options) as connection:
        # DuckDB looks up patterns in this list too.
        connection.execute(f"SET allowed_paths = {_list(sorted({*names, *patterns}))}")
        connection.execute("SET enable_external_access = false")
        try:
            connection.execute(_VIEWS.format(files=_list(patterns)))
            known = connection.sql("SELECT file FROM runs").fetchall()
        except duckdb.Error as error:
            raise ValueError(f"a file is damaged or not a trace: {_message(error)}") from error
        if others := sorted({*names} - {name for (name,) in known}):
            raise ValueError(f"{others[0]}: a Parquet file, but not a talkerviz trace; leave it out")
        connection.execute("SET lock_configuration = true")
        try:
            statements = connection.extract_statements(sql)
            # Other statements could write to the allowed files.
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise ValueError("not a single SELECT: no other statement is allowed")
            return _with_unique_names(connection.sql(statements[0].query).to_arrow_table())
        except duckdb.Error as error:
            raise ValueError(_message(error)) from error


def _escape_pattern(name: str) -> str:
    """Escape a file name as a pattern that matches only itself."""
    return "".join(f"[{char}]" if char in _WILDCARDS else char for char in name)


def _list(texts: Sequence[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


def _message(error: Exception) -> str:
    """Return DuckDB's message without its excerpt of the SQL."""
    return " ".join(str(error).partition("\nLINE ")[0].split())


def _with_unique_names(table: pa.Table) -> pa.Table:
    """Append numbers to duplicate column names, as DuckDB does when it creates a table."""
    names: list[str] = []
    for name in table.column_names:
        number, unique = 0, name
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return table.rename_columns(names)
