"""`talkerviz run`: record any program, unedited."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from talkerviz.atomic_file import is_special
from talkerviz.cli.app import app
from talkerviz.cli.follow import finish_child, follow_children, stop_following
from talkerviz.cli.program import module_program, run_program, script_program, when_imported
from talkerviz.cli.program_recorder import ProgramRecorder, RunOptions
from talkerviz.cli.trace_options import MEASURES_PANEL, OUTPUT_PANEL, SCOPE_PANEL, Clock, Via

_WHEN_PANEL = "When to record"
_FATAL_SIGNALS = ("SIGKILL", "SIGSTOP")


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
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            metavar="",
            rich_help_panel=SCOPE_PANEL,
            help="Record the processes that the program starts too, each in a file of its own.",
        ),
    ] = False,
    clock: Annotated[
        Clock,
        typer.Option(
            rich_help_panel=MEASURES_PANEL,
            help="Clock that times calls: cpu is the host's; cuda, or device on any accelerator, the device's as well;"
            " none records shapes only.",
        ),
    ] = "cpu",
    frames: Annotated[
        str | None,
        typer.Option(metavar="A:B", rich_help_panel=_WHEN_PANEL, help="Record frames A to B-1 only, such as 100:110."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", rich_help_panel=_WHEN_PANEL, help="Begin this long after the import of torch, such as 30s."
        ),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", rich_help_panel=_WHEN_PANEL, help="Record for this long, such as 5s."),
    ] = None,
    on_signal: Annotated[
        str | None,
        typer.Option(
            "--signal",
            metavar="NAME",
            rich_help_panel=_WHEN_PANEL,
            help="Begin and end recordings when this signal comes, such as USR2, and not before.",
        ),
    ] = None,
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
    if on_signal is not None and after is not None:
        raise ValueError("--signal and --after: two ways to begin a recording; give one")
    if deadline is not None and frames is not None:
        raise ValueError("--deadline and --frames: the last frames are kept, or the first; give one")
    options = RunOptions(
        program=to_run.name,
        command=shlex.join(["talkerviz", *sys.argv[1:]]),
        file=str(Path(output).absolute()),
        shown=output,
        models=model or [],
        via=via,
        clock=clock,
        deadline_ms=None if deadline is None else _seconds("--deadline", deadline) * 1_000,
        frames=None if frames is None else _frame_range(frames),
        after_s=None if after is None else _seconds("--after", after),
        for_s=None if duration is None else _seconds("--for", duration),
        signal=None if on_signal is None else _signal_name(on_signal),
        follow=follow,
    )
    recorder = ProgramRecorder(options)
    if follow:
        follow_children(recorder)
    else:
        when_imported("torch", recorder.start)
    pid = os.getpid()
    code = run_program(to_run)
    if os.getpid() == pid:
        recorded = recorder.finish()
        code = code or recorded
    else:  # in a process that the program has forked
        finish_child()
    if follow:
        stop_following()
    raise SystemExit(code)


def _seconds(option: str, text: str) -> float:
    """Parse a time such as `80ms`, `0.5s` or `2min`."""
    match = re.fullmatch(r"([0-9.]+) *(ms|s|min)", text)
    try:
        number = float(match[1]) * {"ms": 1e-3, "s": 1.0, "min": 60.0}[match[2]] if match else 0.0
    except ValueError:
        number = 0.0
    if number <= 0:
        raise ValueError(f"{option} {text!r}: not a time; write it as 80ms or 0.5s")
    return number


def _frame_range(text: str) -> tuple[int, int | None]:
    """Parse a range of frames such as `100:110`, `100:` or `:10`."""
    match = re.fullmatch(r"([0-9]*):([0-9]*)", text)
    start, stop = (int(match[1] or 0), int(match[2]) if match[2] else None) if match else (0, 0)
    if stop is not None and stop <= start:
        raise ValueError(f"--frames {text!r}: no frames; write the first, and the one after the last, as 100:110")
    return start, stop


def _signal_name(text: str) -> str:
    """Check the name of a signal, such as `USR2` or `SIGUSR2`."""
    name = text.upper().removeprefix("SIG")
    names = [member.name.removeprefix("SIG") for member in signal.Signals if member.name not in _FATAL_SIGNALS]
    if name not in names:
        raise ValueError(f"--signal {text}: no signal that a program can handle; use USR2 or USR1")
    return name
