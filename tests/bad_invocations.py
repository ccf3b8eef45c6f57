"""Bad invocations of every command: `python tests/bad_invocations.py` runs them all and counts how each ends.

A bad invocation shall end with exit code 2 and one line on stderr that begins with `talkerviz: `. `--list` prints each
with its outcome.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from talkerviz.cli import main

SECONDS_EACH = 60
MEMORY_BYTES = 12 << 30
"""A size that is taken for granted shall end in an error, not in the machine's memory."""

LONG_NAME = "n" * 300
NOT_UTF8 = os.fsdecode(b"caf\xe9")
BAD_INPUTS = (
    "missing.parquet",
    "",
    "folder",
    "empty.parquet",
    "text.txt",
    "cut.parquet",
    "flipped.parquet",
    "other.parquet",
    "loop.parquet",
    "dangling.parquet",
    "text.txt/t.parquet",
    f"{NOT_UTF8}.parquet",
    LONG_NAME,
    "/dev/null",
)
BAD_OUTPUTS = (
    "",
    ".",
    "folder",
    "missing/dir/x.svg",
    "text.txt/x.svg",
    "loop.svg",
    LONG_NAME,
    "/dev/fd/99",
    "/dev/full",
    "/proc/x.svg",
    "-",
)
BAD_NUMBERS = ("nan", "inf", "-inf", "-1", "", "abc", "1e400", "0x10", "1.5.2", "99999999999999999999999999")


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended."""

    kind: str
    code: int | None
    stderr: str


def make_files(folder: Path) -> None:
    """Make a trace, files that are none, and special ones, in a folder."""
    run(["trace", "--preset", "tiny", "--frames", "1", "-o", str(folder / "t.parquet")])
    data = (folder / "t.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(data[: len(data) // 2])
    flipped = bytearray(data)
    flipped[-2000:-1900] = bytes(100)
    (folder / "flipped.parquet").write_bytes(flipped)
    pq.write_table(pa.table({"x": [1]}), folder / "other.parquet")
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "text.txt").write_text("hello\n")
    (folder / "list.json").write_text("[]")
    (folder / "codes.json").write_text(json.dumps([[1] * 16] * 2))
    (folder / "large.json").write_text(json.dumps([[10**9] * 16]))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "nan.json").write_text('{"device": "d", "flops": {"float32": NaN}, "bandwidth": NaN, "source": "s"}')
    (folder / "folder").mkdir()
    (folder / "folder" / "mine.txt").write_text("mine")
    (folder / "loop.parquet").symlink_to("loop.parquet")
    (folder / "loop.svg").symlink_to("loop.svg")
    (folder / "dangling.parquet").symlink_to("nowhere/at/all")
    Path(os.fsencode(folder / f"{NOT_UTF8}.parquet").decode(errors="surrogateescape")).write_bytes(b"no trace")
    (folder / "broken.py").write_text("x = 1 +\n")
    (folder / "targets.py").write_text(
        "import sys\nimport torch\nfrom torch import nn\n\n\n"
        "def number():\n    return 3\n\n\n"
        "def raises():\n    raise KeyError('mine')\n\n\n"
        "def leaves():\n    sys.exit(3)\n\n\n"
        "def stops():\n    raise KeyboardInterrupt\n\n\n"
        "def pair():\n    return 1, 2\n\n\n"
        "def fails():\n    return nn.Linear(2, 2), lambda: nn.Linear(2, 2)(torch.zeros(3))\n\n\n"
        "not_callable = 3\n"
    )
    config = folder / "config"
    config.mkdir()
    (config / "config.json").write_text('{"model_type": "nosuch"}')
    (folder / "half").mkdir()
    (folder / "half" / "config.json").write_text('{"model_type": "llama", "hidden_size": -4}')


def bad_invocations() -> list[list[str]]:
    """List invocations of which none can be done."""
    return [*_of_trace(), *_of_speak(), *_of_capture(), *_of_render(), *_of_others()]


def _of_trace() -> Iterator[list[str]]:
    tiny = ["trace", "--preset", "tiny", "--frames", "1", "--no-flow"]
    for output in BAD_OUTPUTS[:-1]:
        yield [*tiny, "-o", output]
    for output in (f"{NOT_UTF8}.parquet", "x.csv", "x.svg"):
        yield [*tiny, "-o", output]
    for output in BAD_OUTPUTS[:6]:
        yield [*tiny, "--codes", output, "-o", "r.parquet"]
    for option in ("--frames", "--seed", "--prompt-tokens", "--text-tokens", "--depth", "--warmup", "--repeat"):
        for number in BAD_NUMBERS[:-1] if option in ("--depth", "--warmup", "--repeat") else BAD_NUMBERS:
            yield ["trace", "--preset", "tiny", option, number, "-o", "r.parquet"]
    for option, value in (
        ("--preset", "nosuch"),
        ("--preset", ""),
        ("--impl", "nosuch"),
        ("--device", "tpu"),
        ("--device", "cuda"),
        ("--dtype", "int8"),
        ("--clock", "sun"),
        ("--clock", "cuda"),
        ("--via", "nosuch"),
        ("--include", "nosuch.*"),
        ("--exclude", "*"),
        ("--speaker", "nosuch"),
        ("--checkpoint", "missing"),
        ("--checkpoint", "folder"),
        ("--checkpoint", "text.txt"),
        ("--checkpoint", "config"),
        ("--inputs", "missing"),
        ("--inputs", "text.txt"),
        ("--inputs", "folder"),
        ("--inputs", "t.parquet"),
        ("--peaks", "missing"),
        ("--peaks", "text.txt"),
        ("--peaks", "folder"),
        ("--peaks", "list.json"),
        ("--peaks", "deep.json"),
        ("--peaks", "nan.json"),
    ):
        preset = [] if option in ("--preset", "--checkpoint") else ["--preset", "tiny"]
        yield ["trace", "--frames", "1", *preset, option, value]
    for flag in ("--busy", "--memory", "--graphs", "--fused", "--nosuch"):
        yield ["trace", "--preset", "tiny", flag]
    for target in ("number", "raises", "leaves", "pair", "fails", "not_callable", "nosuch", ""):
        yield ["trace", f"targets:{target}"]
    for target in (
        "broken:x",
        "nosuch:x",
        "targets.py:number",
        "config",
        "half",
        "folder",
        "text.txt",
        "",
        ":",
        "a:b:c",
    ):
        yield ["trace", target]
    for target in ("missing", "text.txt", "list.json", "folder", "config", "half", "", LONG_NAME):
        yield ["trace", "model", target]
    for option in ("--max-new-tokens", "--prompt-tokens", "--batch"):
        for number in BAD_NUMBERS[:-1]:
            yield ["trace", "model", "config", option, number]
    for function in ("number", "raises", "leaves", "pair", "fails", "nosuch", ""):
        yield ["trace", "call", f"targets:{function}"]
        yield ["trace", "--no-flow", f"targets:{function}", "--steps", "3"]
    for arguments in (
        ["call"],
        ["model"],
        ["call", "targets"],
        ["call", "--nosuch", "targets:fails"],
        ["--frames", "1", "targets:fails"],
        ["targets:fails", "-o", "r.parquet"],
        ["model", "config", "--frames", "3"],
        ["model", "config", "--speaker", "ethan"],
        ["talker", "--batch", "2"],
        ["talker", "--max-new-tokens", "2"],
        ["talker", "extra"],
        ["code2wav", "--inputs", "text.txt"],
        ["code2wav", "--device", "meta"],
        ["nosuch", "talker"],
        ["--nosuch", "talker"],
        ["--depth"],
    ):
        yield ["trace", *arguments]
    for codes in ("missing", "text.txt", "list.json", "large.json", "deep.json", "folder"):
        yield ["trace", "code2wav", "--preset", "tiny", "--codes", codes]


def _of_speak() -> Iterator[list[str]]:
    speak = ["speak", "--preset", "tiny", "--frames", "1"]
    for output in BAD_OUTPUTS[:-1]:
        yield [*speak, "-o", output]
    yield speak
    for option in ("--temperature", "--top-p", "--repetition-penalty", "--top-k", "--seed"):
        for number in BAD_NUMBERS[:-1] if option != "--seed" else BAD_NUMBERS:
            yield [*speak, "-o", "s.wav", option, number]
    for option in ("--frames", "--chunk-frames"):
        for number in BAD_NUMBERS[:-1]:
            yield ["speak", "--preset", "tiny", "-o", "s.wav", option, number]
    for codes in ("missing", "text.txt", "list.json", "large.json", "deep.json", "folder", "empty.parquet"):
        yield ["speak", "--preset", "tiny", "-o", "s.wav", "--codes", codes]
    for option, value in (("--speaker", "bob"), ("--inputs", "text.txt"), ("--device", "meta"), ("--device", "cuda")):
        yield [*speak, "-o", "s.wav", option, value]
    yield ["speak", "--checkpoint", "missing", "-o", "s.wav"]
    yield ["speak", "--checkpoint", "config", "-o", "s.wav"]
    yield [*speak, "--greedy", "--top-k", "3", "-o", "s.wav"]
    yield [*speak, "-o", "s.mp3"]


def _of_capture() -> Iterator[list[str]]:
    for checkpoint in ("missing", "folder", "text.txt", "config", "half", "", LONG_NAME):
        yield ["capture", "--checkpoint", checkpoint, "--text", "hello", "-o", "i.safetensors"]
    for output in BAD_OUTPUTS[:6]:
        yield ["capture", "--checkpoint", "config", "--text", "hello", "-o", output]
    yield ["capture", "--checkpoint", "config", "-o", "i.safetensors"]
    yield ["capture", "--text", "hello", "-o", "i.safetensors"]
    for number in BAD_NUMBERS[:-1]:
        yield ["capture", "--checkpoint", "config", "--text", "a", "--max-new-tokens", number, "-o", "i.safetensors"]
    for option in ("--audio", "--image"):
        for file in ("missing.wav", "folder", ""):
            yield ["capture", "--checkpoint", "config", option, file, "-o", "i.safetensors"]
    yield ["capture", "--checkpoint", "config", "--text", "a", "--device", "meta", "-o", "i.safetensors"]


def _of_render() -> Iterator[list[str]]:
    for file in BAD_INPUTS:
        yield ["render", file, "-f", "svg", "-o", "x.svg"]
    for output in BAD_OUTPUTS[:-1]:
        yield ["render", "t.parquet", "-f", "dot", "-o", output]
    for output in ("x", "x.nosuch", "x.json", ""):
        yield ["render", "t.parquet", "-o", output]
    for option in ("--frame", "--depth", "--max-nodes", "--top", "--rank"):
        for number in BAD_NUMBERS[:-1]:
            yield ["render", "t.parquet", "-f", "csv" if option == "--top" else "dot", option, number, "-o", "x.svg"]
    for number in ("--frame", "--rank"):
        yield ["render", "t.parquet", "-f", "dot", number, "99999999999999999999", "-o", "x.svg"]
    for option, value in (
        ("--style", "nosuch"),
        ("--style", "source"),
        ("--by", "nosuch"),
        ("--by", "module"),
        ("--phase", "nosuch"),
        ("--module", "nosuch"),
        ("--open", "nosuch"),
        ("--close", "nosuch"),
        ("--edges", "nosuch"),
        ("--sort", "self"),
        ("--across", "rank"),
    ):
        yield ["render", "t.parquet", "-f", "svg", option, value, "-o", "x.svg"]
    yield ["render", "t.parquet", "-f", "gif"]
    yield ["render", "t.parquet", "-f", "svg", "--pages"]
    yield ["render", "t.parquet", "-f", "svg", "--pages", "-o", "text.txt"]
    yield ["render", "t.parquet", "-f", "csv", "--pages", "-o", "p"]
    yield ["render"]


def _of_others() -> Iterator[list[str]]:
    for file in BAD_INPUTS:
        yield ["show", file]
        yield ["tree", file]
        yield ["report", file, "-o", "new"]
        yield ["diff", "t.parquet", file]
        yield ["merge", file, "t.parquet", "-o", "m.parquet"]
        yield ["query", "SELECT count(*) FROM calls", file]
    for folder in ("text.txt", "folder", ".", "loop.svg", "/dev/null", "/proc/x", "text.txt/r", LONG_NAME):
        yield ["report", "t.parquet", "-o", folder]
    for output in BAD_OUTPUTS[:6]:
        yield ["merge", "t.parquet", "t.parquet", "-o", output]
        yield ["diff", "t.parquet", "t.parquet", "-f", "markdown", "-o", output]
        yield ["query", "SELECT count(*) FROM calls", "t.parquet", "-f", "csv", "-o", output]
        yield ["doctor", "--measure", "-o", output]
    yield ["doctor", "-o", "p.json"]
    for percent in BAD_NUMBERS[:-1]:
        yield ["diff", "t.parquet", "t.parquet", "--fail-above", percent]
    for sql in ("", "nosuch", "SELECT nosuch FROM calls", "DROP TABLE calls", "SELECT 1; SELECT 2", "\0", "SELECT '"):
        yield ["query", sql, "t.parquet"]
    for command in ("nosuch", "", "--nosuch", "-x"):
        yield [command]
    for option in ("--top", "--rank"):
        for number in BAD_NUMBERS[:-1]:
            yield ["show", "t.parquet", option, number]
    for flag in ("--runs", "--ranks"):
        yield ["show", "t.parquet", flag]
    yield ["show"]
    yield ["show", "t.parquet", "t.parquet"]
    yield ["merge", "t.parquet", "-o", "t.parquet"]


def in_a_shell() -> list[str]:
    """List shell commands that end with exit code 0 or 2, without a traceback; `tv` is the command line."""
    return [
        "tv show t.parquet | head -1",
        "tv --help | head -1",
        "(sleep 0.2; tv show t.parquet; echo $? >&3) 3>&2 | true",
        "(sleep 0.2; tv render t.parquet -f dot; echo $? >&3) 3>&2 | true",
        "tv show t.parquet >&-",
        "tv show t.parquet 2>&-",
        "tv show missing 2>&-",
        "tv render t.parquet -f dot >&-",
        "tv render t.parquet -f dot -o x.dot >&- 2>&- <&-",
        "tv show t.parquet >/dev/full",
        "tv --version >/dev/full",
        "tv show missing 2>/dev/full",
        "COLUMNS=0 tv show t.parquet",
        "COLUMNS=² LINES=x tv tree t.parquet",
        "PYTHONIOENCODING=ascii tv tree t.parquet",
        "TERM=dumb tv show t.parquet",
        "tv trace --preset tiny --frames 1 --no-flow -o /dev/null",
        "tv trace --preset tiny --frames 1 --no-flow -o - | head -c 4",
        "(ulimit -f 1; trap '' XFSZ; tv render t.parquet -f svg -o full.svg)",
        "tv speak --preset tiny --frames 1 -o - ",
    ]


class _TooLong(BaseException):
    pass


def run(arguments: list[str], seconds: int = SECONDS_EACH) -> Outcome:
    """Run the command line in this process, and say how it ended."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    before = sys.argv, signal.signal(signal.SIGALRM, _stop), sys.path[:]
    sys.argv = ["talkerviz", *arguments]
    sys.path.insert(0, "")
    signal.alarm(seconds)
    code: int | None = None
    kind = ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except _TooLong:
        kind = "timeout"
    except BaseException:
        kind = "traceback"
        err.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        sys.argv = before[0]
        signal.signal(signal.SIGALRM, before[1])
        sys.path[:] = before[2]
    err.flush()
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    return Outcome(kind or kind_of(code, said), code, said)


def run_in_shell(command: str) -> Outcome:
    """Run a shell command with `tv` for the command line."""
    tv = f'tv() {{ {shlex.quote(sys.executable)} -m talkerviz "$@"; }}; set -o pipefail; '
    done = subprocess.run(["bash", "-c", tv + command], capture_output=True, timeout=300, check=False)
    said = done.stderr.decode(errors="replace")
    if command.startswith("(sleep"):  # the exit code is the last line of stderr, true's is that of the pipe
        *lines, code = said.splitlines()
        return Outcome(kind_of(int(code), "".join(f"{line}\n" for line in lines)), int(code), said)
    return Outcome(kind_of(done.returncode, said), done.returncode, said)


def kind_of(code: int | None, stderr: str) -> str:
    """Name how an invocation ended, by its exit code and what it said."""
    if "Traceback" in stderr or "Exception ignored" in stderr:
        return "traceback"
    lines = stderr.splitlines()
    if code == 0:
        return "exit 0"
    if code != 2:
        return f"exit {code}"
    if len(lines) > 1:
        return "exit 2, more than a line"
    return "exit 2, one line" if lines and lines[0].startswith("talkerviz: ") else "exit 2, no line"


def _stop(*_: object) -> None:
    raise _TooLong


def run_all(chosen: list[list[str]]) -> Iterator[tuple[list[str], Outcome]]:
    """Run invocations in a folder of their own."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        os.chdir(folder)
        try:
            for arguments in chosen:
                yield arguments, run(arguments)
        finally:
            os.chdir(before)


def _main() -> None:
    everything = "--list" in sys.argv
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, hard))
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    by_command: Counter[tuple[str, str]] = Counter()
    for arguments, outcome in run_all(bad_invocations()):
        counts[outcome.kind] += 1
        by_command[arguments[0] or "''", outcome.kind] += 1
        if everything or outcome.kind != "exit 2, one line":
            said = outcome.stderr.strip().splitlines()
            print(f"{outcome.kind}: {shlex.join(arguments)[:150]!a}: {(said or [''])[-1][:200]!a}", flush=True)
    shells: Counter[str] = Counter()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        os.chdir(folder)
        for command in in_a_shell():
            outcome = run_in_shell(command)
            shells[outcome.kind] += 1
            if everything or outcome.kind not in ("exit 0", "exit 2, one line"):
                print(f"{outcome.kind}: {command!a}: {outcome.stderr[-200:]!a}", flush=True)
        os.chdir(before)
    for (command, kind), count in sorted(by_command.items()):
        print(f"{command:10} {kind:26} {count:4}")
    print(f"{sum(counts.values())} bad invocations in {time.perf_counter() - began:.0f} s: {dict(counts)}")
    print(f"{sum(shells.values())} in a shell: {dict(shells)}")


if __name__ == "__main__":
    _main()
