"""Mutated trace files, and a command that opens many of them: `python tests/mutations.py --count 500`.

Bytes are mutated as a disk or a transfer does it; columns, metadata and events as a hostile writer does it, with right
checksums. Whatever a file is, each command must draw it or say in one line what is wrong with it, and exit with 2.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

import talkerviz as tv
from talkerviz.trace.event_blocks import block, read_blocks
from talkerviz.trace.join import join

recorder = import_module("talkerviz.recorder.recording")  # its package has a function of this name

NUMBERS = (0, -1, 1, 2, 7, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 61, (1 << 63) - 1, -(1 << 63))
VALUES: tuple[Any, ...] = (
    *(None, True, "", "x", "\x1b[31m\u202e", [], {}, [None], {"a": 1}, -1, 0, 1.5, 1 << 70, 1e308),
    *(float("nan"), float("inf"), [[[]]], ["x"] * 3, [-1, 1 << 65]),
)


# The files that are mutated.


def flow_trace(path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)], nn.ReLU())
    x = torch.ones(1, 4)

    def run() -> None:
        for _ in range(6):
            model(x)

    whole = tv.record(model, run)
    for measure in ("flow", "cost"):
        whole = join(whole, tv.record(model, run, measure=measure, clock="none"))
    whole.save(path)


def generate_trace(path: Path) -> None:
    from talkerviz.targets import config_target

    config = {
        **{"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32},
    }
    file = path.with_name("config.json")
    file.write_text(json.dumps(config))
    target = config_target(file, "cpu", None, 8)
    made = [
        tv.record(target.model, lambda: target.run(lambda done: None), facts=target.facts, clock=clock, measure=measure)
        for clock, measure in (("cpu", None), ("none", "flow"))
    ]
    join(*made).save(path)


def merged_trace(path: Path) -> None:
    from rank_traces import meeting, rank_traces

    from talkerviz.trace.merge import merge

    meetings = [meeting([10_000 * number, 10_000 * number + 500, 10_000 * number + 900], 300) for number in (1, 2, 3)]
    merge(rank_traces(meetings, ahead=(0, 100_000, 250_000))).save(path)


def partial_trace(path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    whole, before = path.with_name("whole.parquet"), recorder._BATCH
    recorder._BATCH = 64
    try:
        with tv.recording(model, file=whole):
            for size in range(1, 120):
                model(torch.zeros(1 + size % 4, 2))
                if size == 50:
                    with contextlib.suppress(Exception):
                        model(torch.zeros(3))
            path.write_bytes(Path(f"{whole}.partial").read_bytes())
    finally:
        recorder._BATCH = before


BASES: dict[str, Callable[[Path], None]] = {
    "flow.parquet": flow_trace,
    "generate.parquet": generate_trace,
    "merged.parquet": merged_trace,
    "killed.parquet.partial": partial_trace,
}


# Mutations.


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, write, insert, remove, repeat or cut bytes."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(found)) if found else 0
        # The end of a Parquet file says what is in it.
        if rng.random() < 0.5:
            at = max(0, len(found) - 1 - rng.randrange(min(len(found), 6000) or 1))
        until = min(len(found), at + rng.choice((1, 2, 8, 100)))
        kind = rng.randrange(7)
        if not found:
            return b""
        if kind <= 1:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            found[at:until] = rng.randbytes(until - at)
        elif kind == 3:
            found[at:at] = rng.randbytes(rng.choice((1, 4, 50)))
        elif kind == 4:
            del found[at:until]
        elif kind == 5:
            found[at:until] = bytes(until - at) if rng.random() < 0.5 else b"\xff" * (until - at)
        else:
            del found[at:]
    return bytes(found)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Put another value in some place of it."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        if isinstance(value, dict):
            key: Any = rng.choice(list(value))
            changed: Any = dict(value)
        else:
            key, changed = rng.randrange(len(value)), list(value)
        if rng.random() < 0.15:
            del changed[key]
        else:
            changed[key] = mutate_json(value[key], rng)
        return changed
    if isinstance(value, int) and rng.random() < 0.5:
        return rng.choice(NUMBERS)
    return rng.choice(VALUES)


def json_bytes(value: Any, rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.05:
        return b"[" * 100_000
    text = json.dumps(value).encode()
    return mutate_bytes(text, rng) if kind < 0.15 else text


def mutate_table(table: pa.Table, rng: random.Random) -> pa.Table:
    """Change values, rows or columns of a table."""
    name = rng.choice(table.column_names)
    place = table.column_names.index(name)
    field, column = table.schema.field(place), table.column(place)
    kind = rng.randrange(20)
    if kind == 0:
        return table.remove_column(place)
    if kind == 1:
        return table.append_column(field, column)
    if kind == 2:
        return table.take(pa.array(rng.sample(range(len(table)), len(table))))
    if kind == 3:
        return pa.concat_tables([table, table.slice(rng.randrange(len(table) or 1))])
    if kind == 4:
        return table.slice(rng.randrange(len(table) or 1))
    if kind == 5:
        other: Any = rng.choice((pa.string(), pa.float64(), pa.int16(), pa.bool_(), pa.binary(), pa.timestamp("ns")))
        with contextlib.suppress(pa.ArrowException):
            return table.set_column(place, name, pa.array([None] * len(table), other))
    values = column.to_pylist()
    if not values:
        return table
    rows = range(len(values)) if kind == 6 else [rng.randrange(len(values)) for _ in range(rng.choice((1, 2, 10)))]
    new = rng.choice([*NUMBERS, None, 1.5, float("nan"), "x" * 1000, "\x1b]0;x\x07\u202e", "=1+1", rng.choice(values)])
    for row in rows:
        values[row] = new
    if kind == 7:
        rng.shuffle(values)
    with contextlib.suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
        array = pa.array(values, field.type)
        return table.set_column(place, field.with_nullable(True), array)
    return table


def mutate_columns(content: bytes, rng: random.Random) -> bytes:
    """Mutate the columns or metadata of a Parquet file, and write it anew."""
    file = pq.ParquetFile(io.BytesIO(content))
    table = file.read()
    metadata = {**(file.schema_arrow.metadata or {}), **(file.metadata.metadata or {})}
    metadata = {name: text for name, text in metadata.items() if name not in (b"talkerviz.crc32", b"ARROW:schema")}
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(metadata))
        kind = rng.random()
        if kind < 0.45:
            table = mutate_table(table, rng)
        elif kind < 0.48:
            del metadata[name]
        elif kind < 0.52:
            metadata[name] = mutate_bytes(metadata[name], rng)
        elif name == b"talkerviz.flow":
            metadata[name] = mutate_flow(metadata[name], rng)
        elif name == b"talkerviz.tensors":
            with contextlib.suppress(ValueError, RecursionError, pa.ArrowException):
                packed = base64.b64decode(metadata[name])
                text = pa.decompress(packed[8:], int.from_bytes(packed[:8], "little"), codec="zstd", asbytes=True)
                new = json_bytes(mutate_json(json.loads(text), rng), rng)
                size = rng.choice((len(new), len(new), len(new), 1 << 36, 0))
                packed = size.to_bytes(8, "little") + pa.compress(new, "zstd", asbytes=True)
                metadata[name] = base64.b64encode(packed)
        else:
            with contextlib.suppress(ValueError, RecursionError):  # what an earlier mutation has left
                metadata[name] = json_bytes(mutate_json(json.loads(metadata[name]), rng), rng)
    at_end = {name: metadata.pop(name) for name in (b"talkerviz.tensors", b"talkerviz.collections") if name in metadata}
    written = io.BytesIO()
    with pq.ParquetWriter(written, table.schema.with_metadata(metadata), compression="zstd") as writer:
        writer.write_table(table.replace_schema_metadata(metadata))
        writer.add_key_value_metadata(at_end)
    return written.getvalue()


def mutate_flow(text: bytes, rng: random.Random) -> bytes:
    """Mutate one of the tables of a flow."""
    try:
        source = io.BytesIO(base64.b64decode(text))
        tables = []
        while source.tell() < len(source.getvalue()):
            tables.append(pa.ipc.open_stream(source).read_all())
    except (ValueError, pa.ArrowException):
        return text
    place = rng.randrange(len(tables))
    metadata = tables[place].schema.metadata
    if metadata and rng.random() < 0.3:
        with contextlib.suppress(ValueError, RecursionError):
            tensors = json_bytes(mutate_json(json.loads(metadata[b"tensors"]), rng), rng)
            tables[place] = tables[place].replace_schema_metadata({b"tensors": tensors})
    else:
        changed = mutate_table(tables[place], rng)
        if rng.random() < 0.8:  # the same schema again, as far as the values allow
            with contextlib.suppress(pa.ArrowException, ValueError, KeyError):
                changed = changed.cast(tables[place].schema)
        tables[place] = changed.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    for table in tables:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return base64.b64encode(sink.getvalue())


def mutate_blocks(content: bytes, rng: random.Random) -> bytes:
    """Mutate names, tensors or events of a `.partial` file, with right checksums."""
    blocks = list(read_blocks(content))
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(blocks))
        parts = list(blocks[place])
        part = rng.randrange(len(parts)) if rng.random() < 0.5 else len(parts) - 1
        kind = rng.random()
        if kind < 0.1:
            blocks.insert(rng.randrange(len(blocks)), blocks[place])
        elif kind < 0.2 and len(blocks) > 1:
            del blocks[place]
        elif part == 0:
            with contextlib.suppress(ValueError, RecursionError):
                parts[0] = json_bytes(mutate_json(json.loads(parts[0]), rng), rng)
            blocks[place] = parts
        elif not parts[part]:
            continue
        elif kind < 0.5:
            blocks[place] = [*parts[:part], mutate_bytes(parts[part], rng), *parts[part + 1 :]]
        else:
            numbers = np.frombuffer(parts[part], "<i4" if rng.random() < 0.5 else "<i8").copy()
            with np.errstate(over="ignore"):
                at = rng.randrange(len(numbers))
                numbers[at] = np.int64(rng.choice([*NUMBERS, int(numbers[rng.randrange(len(numbers))])])).astype(
                    numbers.dtype
                )
            blocks[place] = [*parts[:part], numbers.tobytes(), *parts[part + 1 :]]
    written = b""
    for parts in blocks:
        written += block(len(written), parts)
    return written


def mutated(name: str, content: bytes, seed: int) -> bytes:
    """Return a mutation of a file, the same for a seed."""
    rng = random.Random(seed)
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    return mutate_blocks(content, rng) if name.endswith(".partial") else mutate_columns(content, rng)


# Opening them.

COMMANDS = (
    ["show"],
    ["show", "--by", "layer"],
    ["show", "--across", "rank"],
    ["show", "--across", "phase"],
    ["show", "--by", "frame"],
    ["show", "--runs"],
    ["show", "--ranks"],
    ["tree"],
    ["render", "-f", "mermaid"],
    ["render", "-f", "dot", "--style", "flat"],
    ["render", "-f", "json", "--by", "call"],
    ["render", "-f", "csv"],
    ["render", "-f", "markdown", "--by", "part"],
    ["render", "-f", "html", "--by", "class"],
    ["render", "-f", "perfetto"],
    ["render", "-f", "speedscope"],
    ["render", "-f", "flamegraph"],
)
CPU_SECONDS, ADDRESS_BYTES = 30, 6 << 30


def outcomes_of(path: Path, commands: tuple[list[str], ...] = COMMANDS) -> Iterator[tuple[str, str]]:
    """Return the outcome of each command on a file, and what it said."""
    from talkerviz import cli

    for command in commands:
        out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
        sys.argv = ["talkerviz", command[0], str(path), *command[1:]]
        code: Any = None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as stopped:
                code = stopped.code
            except BaseException:
                traceback.print_exc()
        said = err.getvalue()
        if code is None and "Traceback" in said:
            yield "traceback", f"{command}: {said[-1500:]}"
        elif code == 2 and said.endswith("\n") and said[:-1].isprintable():
            yield "one line, exit 2", said
        elif not code:
            yield "fine", ""
        else:
            yield "other", f"{command}: exit {code}: {said[-500:]!r}"


WORST = ("fine", "one line, exit 2", "other", "traceback")


def outcome_in_process(
    path: Path, commands: tuple[list[str], ...] = COMMANDS, seconds: int = CPU_SECONDS
) -> tuple[str, str]:
    """Return the worst outcome of all commands, in a process with limits of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
        worst = ("fine", "")
        for number, outcome in enumerate(outcomes_of(path, commands)):
            if outcome[0] == WORST[1]:
                if number == 0:  # the file is refused; so it is by all others
                    worst = outcome
                    break
                continue  # not every command is for every trace
            worst = max(worst, outcome, key=lambda one: WORST.index(one[0]))
        with os.fdopen(write, "w", encoding="utf-8", errors="backslashreplace") as to:
            json.dump(worst, to)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as source:
        said = source.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ("timeout" if number in (signal.SIGXCPU, signal.SIGKILL) else "crash"), signal.Signals(number).name
    outcome, text = json.loads(said)
    return outcome, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files that are not handled")
    parser.add_argument("--report", action="store_true", help="write a report of each as well")
    parser.add_argument("--say", action="store_true", help="print what is said of each file")
    asked = parser.parse_args()
    commands = COMMANDS
    counts: Counter[tuple[str, str]] = Counter()
    slowest = 0.0
    for command in ("render", "show"):  # once, and not in each process
        import_module(f"talkerviz.cli.{command}")
    with tempfile.TemporaryDirectory() as made:
        folder, contents = Path(made), {}
        if asked.report:
            commands = (*COMMANDS, ["report", "-o", str(folder / "report")])
            import_module("talkerviz.cli.report")
        for name, make in BASES.items():
            make(folder / name)
            contents[name] = (folder / name).read_bytes()
            print(name, *outcome_in_process(folder / name))
            # What commands import late is imported by now.
            list(outcomes_of(folder / name))
        for number in range(asked.count):
            name = list(BASES)[number % len(BASES)]
            content = mutated(name, contents[name], asked.seed * 1_000_003 + number)
            path = folder / f"mutated.{name}"
            path.write_bytes(content)
            began = time.monotonic()
            outcome, said = outcome_in_process(path, commands)
            slowest = max(slowest, time.monotonic() - began)
            counts[name, outcome] += 1
            if asked.say:
                print(f"{number} {outcome}: {said.strip()[len('talkerviz: ') + len(str(folder)) :]}", flush=True)
            if outcome not in WORST[:2]:
                print(f"{number} {name}: {outcome}: {said}", flush=True)
                if asked.keep:
                    asked.keep.mkdir(exist_ok=True)
                    (asked.keep / f"{number}.{name}").write_bytes(content)
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:24} {outcome:20} {count}")
    total = Counter[str]()
    for (_, outcome), count in counts.items():
        total[outcome] += count
    print(f"all {sum(total.values())}: {dict(total)}; slowest {slowest:.1f} s")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent / "helpers"))
    main()
