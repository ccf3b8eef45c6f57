"""`talkerviz run`: record any program, unedited."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import warnings
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from talkerviz.atomic_file import is_special
from talkerviz.cli.app import app
from talkerviz.cli.program import Program, module_program, run_program, script_program, when_imported
from talkerviz.cli.streams import print_message
from talkerviz.cli.trace_options import OUTPUT_PANEL, SCOPE_PANEL, Via

if TYPE_CHECKING:
    from talkerviz.api import Trace
    from talkerviz.recorder.recording import Recording

_logger = logging.getLogger("talkerviz")
_EXIT_BAD_INPUT = 2
_MAX_NAMES = 8  # models named in an error message


class _ProgramCommand(TyperCommand):
    """Command whose options end at the program's name: what follows is the program's own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the program."""
        takes_value = {
            name
            for parameter in self.params
            if parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False)
            for name in parameter.opts
        }
        position = 0
        while position < len(args) and args[position].startswith("-") and args[position] != "--":
            option = args[position]
            position += 2 if option in takes_value else 1
            if option == "-m":
                break
        rest = args[position:]
        return super().parse_args(ctx, [*args[:position], "--", *(rest[1:] if rest[:1] == ["--"] else rest)])


@app.command(cls=_ProgramCommand, options_metavar="[OPTIONS]")
def run(
    program: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCRIPT.py | COMMAND [ARGS]...",
            help="Script, or console script such as pytest, and its own arguments.",
        ),
    ] = None,
    module: Annotated[
        str | None, typer.Option("-m", metavar="MODULE", help="Run a module as `python -m` does; its arguments follow.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", rich_help_panel=SCOPE_PANEL, help="Record only models of this name, as 'unet'; repeatable."
        ),
    ] = None,
    via: Annotated[
        Via,
        typer.Option(
            rich_help_panel=SCOPE_PANEL,
            help="Intercept calls at nn.Module.__call__ (tap) or with forward hooks; auto is tap.",
        ),
    ] = "auto",
    deadline: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            rich_help_panel=OUTPUT_PANEL,
            help="Keep the last frames alone, and a file for each frame that takes longer, such as 80ms.",
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", rich_help_panel=OUTPUT_PANEL, help="Trace file to write.")
    ] = "run.parquet",
) -> None:
    """Run a Python program as it is, and record the models that it calls.

    What stands behind the program's name is its own. Models are found by themselves: each module that is called from
    outside any other, named by the variable or attribute that holds it. The program's output and exit code are its
    own; a summary is printed on stderr at its end.
    """
    args = program or []
    if module is None and not args:
        raise ValueError("run: no program; give a script, a console script or -m MODULE")
    to_run = module_program(module, args) if module is not None else script_program(args[0], args[1:])
    if is_special(output) or output == "-":
        raise ValueError(f"-o {output}: the program's output is its own; name a file, such as run.parquet")

    from talkerviz.cli.output import check_writable
    from talkerviz.trace.parquet import check_name

    check_writable(output)
    check_name(Path(output))
    limit = None if deadline is None else _milliseconds(deadline)
    recorder = _Recorder(to_run, Path(output).absolute(), output, model or [], via, limit)
    when_imported("torch", recorder.start)
    pid = os.getpid()
    code = run_program(to_run)
    if os.getpid() == pid:  # and not in a process that the program has forked
        recorded = recorder.finish()
        code = code or recorded
    raise SystemExit(code)


def _milliseconds(text: str) -> float:
    """Parse a time such as `80ms` or `0.5s`."""
    match = re.fullmatch(r"([0-9.]+) *(ms|s)", text)
    try:
        number = float(match[1]) * {"ms": 1, "s": 1_000}[match[2]] if match else 0.0
    except ValueError:
        number = 0.0
    if number <= 0:
        raise ValueError(f"--deadline {text!r}: not a time; write it as 80ms or 0.5s")
    return number


class _Lines(logging.Handler):
    """Handler that prints lines about late frames on stderr, whatever the program's own logging does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        print_message(record.getMessage())


class _Recorder:
    """Recording of a program, from its import of torch to its end."""

    def __init__(
        self, program: Program, file: Path, shown: str, models: list[str], via: str, deadline_ms: float | None
    ) -> None:
        self._deadline_ms, self._lines = deadline_ms, _Lines()
        self._program, self._file, self._shown, self._models, self._via = program, file, shown, models, via
        self._command = shlex.join(["talkerviz", *sys.argv[1:]])
        self._context: AbstractContextManager[Recording[Trace]] | None = None
        self._recording: Recording[Trace] | None = None

    def start(self) -> None:
        """Begin to record. A failure is a message: the program runs on."""
        from talkerviz.api import flight_recorder, recording

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                begin: Any = recording
                if self._deadline_ms is not None:
                    _logger.addHandler(self._lines)
                    _logger.propagate = False
                    begin = partial(flight_recorder, deadline_ms=self._deadline_ms)
                context = begin(
                    name=self._program.name,
                    include=[pattern for name in self._models for pattern in (name, f"{name}.*")],
                    facts={"command": self._command},
                    file=self._file,
                    via=self._via,
                )
                self._recording = context.__enter__()
                self._context = context
        except (OSError, ValueError) as error:
            print_message(f"the program is not recorded: {error}")

    def finish(self) -> int:
        """End the recording, print the summary on stderr, and return the exit code of the recording's own part."""
        if self._context is None or self._recording is None:
            if "torch" not in sys.modules:
                print_message(f"{self._program.name}: it never imported torch, so no module was called")
            return _EXIT_BAD_INPUT
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._context.__exit__(None, None, None)
        _logger.removeHandler(self._lines)
        _logger.propagate = True
        if self._recording.lost:
            kept = f"what was recorded until then is in {self._recording.file}"
            print_message(f"{self._shown}: {self._recording.lost}; {kept}")
            return _EXIT_BAD_INPUT
        trace = self._recording.trace
        if trace.calls.empty:
            if self._recording.file is not None:
                self._recording.file.unlink(missing_ok=True)
            print_message(self._why_empty())
            return _EXIT_BAD_INPUT
        with suppress(BrokenPipeError):  # nobody reads stderr: the exit code is the program's all the same
            self._summarise(trace)
        return 0

    def _why_empty(self) -> str:
        assert self._recording is not None
        seen = sorted(self._recording.passed_over)
        if seen:
            names = ", ".join(seen[:_MAX_NAMES]) + (", ..." if len(seen) > _MAX_NAMES else "")
            return f"--model {' '.join(self._models)}: no such model; {self._program.name} called {names}"
        return f"{self._program.name}: it called no module"

    def _summarise(self, trace: Trace) -> None:
        from talkerviz.cli.output import console, print_summary
        from talkerviz.trace.labels import format_count

        assert self._recording is not None
        if trace.facts.get("process", {}).get("rank", 0) != 0:
            return
        terminal = console(stderr=True)
        print_summary(terminal, trace)
        calls = format_count(len(trace.calls), "call")
        if self._recording.file is None:  # the last frames alone are in memory
            trace.save(self._file)
            late = format_count(len(self._recording.late), "frame")
            terminal.print(f"{late} later than {self._deadline_ms:g} ms", highlight=False, soft_wrap=True)
            terminal.print(f"the last {calls} -> {self._shown}", highlight=False, soft_wrap=True)
            return
        file = Path(self._shown).with_name(self._recording.file.name)  # each rank has a file of its own
        terminal.print(f"{calls} -> {file}", highlight=False, soft_wrap=True)
