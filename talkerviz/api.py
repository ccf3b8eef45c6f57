"""Public surface: traces with their tables and charts, and the functions that record and compare them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, overload

from talkerviz.analysis.pivot import Across
from talkerviz.analysis.summary import By
from talkerviz.render import registry
from talkerviz.render.options import OPTIONS, RenderOptions, help_lines
from talkerviz.render.registry import BINARY, BinaryFormat, TextFormat
from talkerviz.render.tables.summary import table_of
from talkerviz.trace.trace import TraceRecord

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from talkerviz.analysis.compare import ComparedBy
    from talkerviz.flowchart.model import Edges
    from talkerviz.recorder.phases import PhaseRule
    from talkerviz.recorder.recording import Recording

_Options = ParamSpec("_Options")


class _Render(Protocol[_Options]):
    """Type of `Trace.render`: keyword arguments are those of `RenderOptions`, which writes each option once."""

    @overload
    def __call__(self, format: TextFormat, *args: _Options.args, **options: _Options.kwargs) -> str: ...
    @overload
    def __call__(self, format: BinaryFormat, *args: _Options.args, **options: _Options.kwargs) -> bytes: ...
    @overload
    def __call__(self, format: str, *args: _Options.args, **options: _Options.kwargs) -> str | bytes: ...


class _RenderMethod(Generic[_Options]):
    """Type of the method before it is bound to a trace."""

    @overload
    def __get__(self, trace: None, owner: type[object]) -> Callable[..., str | bytes]: ...
    @overload
    def __get__(self, trace: object, owner: type[object]) -> _Render[_Options]: ...
    def __get__(self, trace: object, owner: type[object]) -> Any:
        raise NotImplementedError  # for type checkers: the attribute is the function itself


def _with_options(
    options: Callable[_Options, RenderOptions],
) -> Callable[[Callable[..., str | bytes]], _RenderMethod[_Options]]:
    """Give a method the signature and the help of the options that it takes."""

    def decorate(method: Callable[..., str | bytes]) -> Any:
        own = [
            parameter
            for parameter in inspect.signature(method).parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        taken = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default)
            for name, option in OPTIONS.items()
        ]
        method.__signature__ = inspect.Signature([*own, *taken])  # type: ignore[attr-defined]
        if method.__doc__:  # none under `python -OO`
            method.__doc__ = method.__doc__.replace(" " * 12 + "**options: see `RenderOptions`.", help_lines(" " * 12))
        return method

    return decorate


class Trace(TraceRecord):
    """Record of a run, with its tables and charts; `TraceRecord` describes the attributes."""

    def table(
        self, by: By = "module", sort: str | None = None, top: int | None = None, across: Across | None = None
    ) -> pd.DataFrame:
        """Summarise where the time went, a row per module, class, phase, part, layer, request, frame or call.

        Args:
            by: rows of the table.
            sort: column to sort by, numbers largest first: its name in the table, with or without its unit, or its
                heading. By default `self`, but run order for phases, parts, requests and frames.
            top: maximum number of rows; None for all.
            across: columns side by side, by `phase`, `part` or `rank`, for modules or classes.

        Returns:
            Columns of [`summarise`][talkerviz.analysis.summary.summarise], or with `across` of
            [`pivot`][talkerviz.analysis.pivot.pivot]. Times are nanoseconds; `<NA>` was not measured.

        Raises:
            ValueError: unknown `by`, `sort` or `across`; fewer than two columns to set side by side; `top` below 1.
        """
        summary = table_of(self, RenderOptions(by=by, sort=sort, top=top, across=across))
        return summary if top is None else summary.head(top)

    @_with_options(RenderOptions)
    def render(self, format: str, **options: Any) -> str | bytes:
        """Render the trace as a chart, a table, a page, or a file for another program.

        Args:
            format: `mermaid`, `dot`, `svg`, `png`, `pdf` or `model-explorer` for a chart; `markdown`, `latex`, `html`,
                `csv` or `json` for a table; `page` for the page of a report as one HTML file; `perfetto`,
                `speedscope`, `flamegraph`, `tensorboard` or `timeline`.
            **options: see `RenderOptions`.

        Returns:
            Text of the format; bytes for PNG and PDF.

        Raises:
            ValueError: unknown format or value, an option that does not apply to the format, no such phase, frame or
                module, or a program that is missing; the message is one line.
            TypeError: unknown option.
        """
        if unknown := sorted(options.keys() - OPTIONS.keys()):
            raise TypeError(f"render: unknown option {unknown[0]!r}; choose from {', '.join(OPTIONS)}")
        rendered = registry.render(self, format, RenderOptions(**options))
        return rendered if format in BINARY else rendered.decode()

    def show(
        self,
        by: By | None = None,
        *,
        across: Across | None = None,
        sort: str | None = None,
        top: int | None = None,
        phase: str | None = None,
        frame: int | None = None,
        module: str | None = None,
        rank: int | None = None,
        runs: bool = False,
        ranks: bool = False,
    ) -> None:
        """Print a latency table, as `talkerviz show` does.

        Args:
            by: rows of the table, by default `module`.
            across: columns side by side, by `phase`, `part` or `rank`.
            sort: column to sort by, see `table`.
            top: maximum number of rows.
            phase: only this phase.
            frame: only this frame, counted from 0.
            module: only modules whose path matches this pattern, and the calls inside them.
            rank: only this rank of a merged trace.
            runs: print how the runs differ, instead of their sums.
            ranks: print how the ranks of a merged trace wait for each other.

        Raises:
            ValueError: as `table` and `select`; options that do not go together.
        """
        from talkerviz.render.terminal.console import console
        from talkerviz.render.terminal.printing import check_show_options, print_ranks, print_table

        options = RenderOptions(
            by=by, across=across, sort=sort, top=top, phase=phase, frame=frame, module=module, rank=rank
        )
        check_show_options(options, runs, ranks)
        if ranks:
            print_ranks(console(), self, options)
        else:
            print_table(console(), self, options, runs)

    def ranks(self, by: str = "rank") -> pd.DataFrame:
        """Tell how the ranks of a merged trace wait for each other in collectives, as `talkerviz show --ranks` does.

        Args:
            by: rows of the table: `rank`; or `module`, `layer`, `frame` or `call` for collectives by their modules,
                layers, frames or each of them.

        Returns:
            Columns of [`Stragglers`][talkerviz.analysis.stragglers.Stragglers]; times are nanoseconds. Its `attrs` have
            the `sentence` that names the rank that others wait for, and `notes`.

        Raises:
            ValueError: the trace has fewer than two ranks, or no times; unknown `by`.
        """
        from talkerviz.analysis.stragglers import rank_table

        return rank_table(self, by)

    def tree(
        self,
        depth: int | None = None,
        *,
        sort: str | None = None,
        phase: str | None = None,
        frame: int | None = None,
        module: str | None = None,
        rank: int | None = None,
    ) -> None:
        """Print the call tree with repeated modules folded, as `talkerviz tree` does.

        Args:
            depth: levels below the phases; 0 for the outermost calls alone, None for all.
            sort: column by which modules with the same caller are sorted; None for run order.
            phase: only this phase.
            frame: only this frame, counted from 0.
            module: only modules whose path matches this pattern, and the calls inside them.
            rank: only this rank of a merged trace.

        Raises:
            ValueError: unknown or unmeasured column; as `select`.
        """
        from talkerviz.render.terminal.console import console
        from talkerviz.render.terminal.printing import print_tree

        options = RenderOptions(depth=depth, sort=sort, phase=phase, frame=frame, module=module, rank=rank)
        print_tree(console(), self, options)

    def report(self, folder: str | Path = "report") -> Path:
        """Write a report: a folder with a page, a text, tables and charts, as `talkerviz report` does.

        Args:
            folder: new or empty folder, or that of an earlier report, which is replaced.

        Returns:
            Path of the page, `index.html`.

        Raises:
            ValueError: the folder holds other files, or files of the report in it were changed.
            OSError: the folder cannot be written.

        A part that could not be made, such as a chart without Graphviz, is a RuntimeWarning.
        """
        from talkerviz.report.writer import write_report

        for note in write_report(self, Path(folder)):
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        return Path(folder) / "index.html"

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, str]:
        """Return the trace's display in Jupyter, by MIME type."""
        from talkerviz.notebook.display import mimebundle

        return mimebundle(self, include, exclude)


@overload
def diff(
    before: TraceRecord,
    after: TraceRecord,
    format: None = None,
    *,
    by: ComparedBy = "pattern",
    top: int = 20,
    edges: Edges | None = None,
    max_nodes: int | None = None,
) -> None: ...
@overload
def diff(
    before: TraceRecord,
    after: TraceRecord,
    format: TextFormat,
    *,
    by: ComparedBy = "pattern",
    top: int = 20,
    edges: Edges | None = None,
    max_nodes: int | None = None,
) -> str: ...
@overload
def diff(
    before: TraceRecord,
    after: TraceRecord,
    format: BinaryFormat,
    *,
    by: ComparedBy = "pattern",
    top: int = 20,
    edges: Edges | None = None,
    max_nodes: int | None = None,
) -> bytes: ...
def diff(
    before: TraceRecord,
    after: TraceRecord,
    format: str | None = None,
    *,
    by: ComparedBy = "pattern",
    top: int = 20,
    edges: Edges | None = None,
    max_nodes: int | None = None,
) -> str | bytes | None:
    """Compare two traces in time and in the modules called, as `talkerviz diff` does.

    Args:
        before: trace of the first run.
        after: trace of the second run.
        format: None to print the comparison; `markdown`, `html`, `csv` or `json` to return its table; a chart's format
            to return a flowchart of both runs.
        by: rows of the table: `pattern`, equal modules of several layers together; `module`, `class`, `phase` or
            `layer`.
        top: maximum number of rows below those of the phases.
        edges: arrows of the chart: `flow`, `calls`, or None for tensor flow if both traces have it.
        max_nodes: maximum number of boxes of the chart.

    Returns:
        None if it was printed; else the text, or bytes for PNG and PDF.

    Raises:
        ValueError: what is compared is no trace; unknown `format` or `by`; a table of traces without times; tensor
            flow that was not recorded; a merged trace of several ranks.
    """
    from talkerviz.render.diff import DIFF_FORMATS, DIFF_TABLES, compare_runs, render_comparison_as

    for name, trace in (("before", before), ("after", after)):
        if not isinstance(trace, TraceRecord):
            raise ValueError(f"diff: {name} is a {type(trace).__name__}, not a trace; open a file with Trace.load")
    if format is not None and format not in DIFF_FORMATS:
        raise ValueError(f"diff: unknown format {format!r}; choose from {', '.join(DIFF_FORMATS)}")
    if format is None:
        from talkerviz.render.terminal.console import console
        from talkerviz.render.terminal.printing import print_comparison

        print_comparison(console(), compare_runs(before, after, by, top, edges))
        return None
    comparison = compare_runs(before, after, by, top, edges, "required" if format in DIFF_TABLES else "none")
    rendered = render_comparison_as(comparison, format, max_nodes)
    return rendered if format in BINARY else rendered.decode()


def recording(
    model: nn.Module | Mapping[str, nn.Module] | None = None,
    name: str = "model",
    phases: Callable[[str], PhaseRule] | None = None,
    clock: str = "cpu",
    facts: Mapping[str, Any] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    depth: int | None = None,
    measure: str | None = None,
    file: str | Path | None = None,
    nvtx: bool = False,
    via: str = "auto",
    only: str | None = None,
) -> AbstractContextManager[Recording[Trace]]:
    """Record every call of the model's modules made inside the `with` block, on any thread.

    The model is unchanged afterwards. `trace` holds the calls up to the end of the block, also after an exception.

    Args:
        model: any module; or several by name, each with phases and frames of its own; or None to record every model
            that is called, with the name of the variable or attribute that holds it.
        name: name of a single model in the trace; every module path begins with it.
        phases: function that takes the root's name and returns the rule that divides a run into phases and frames, such
            as the class `TalkerPhases`. By default each forward pass is a frame; its phase is `prefill` or `decode` by
            positions and KV cache, or `forward` without a cache: see `PassPhases`.
        clock: `cpu` for host times in nanoseconds; `cuda`, or `device` on any accelerator, for device times as well: of
            all calls in some frames and of the outer ones in all; `cuda-all` and `device-all` for those of every call;
            `none` for shapes alone.
        facts: facts about the run to store, JSON values; versions, device and threads are stored anyway.
        include: record only modules whose path matches one of these shell patterns; `*` matches dots.
        exclude: skip modules whose path matches one of these.
        depth: maximum levels below the root to record.
        measure: quantity whose measurement slows the run, so that the recording's times are meaningless: take times
            from another recording, and combine the two with `join`. `cost` counts floating-point operations and bytes
            of each call, on any device; `memory` its allocations and `busy` its kernels' time, on CUDA devices; `flow`
            follows tensors from operation to operation on the thread that begins the recording, for `Trace.flow`.
        file: file to write the trace to; each process of several, as under `torchrun`, writes one with its rank in the
            name, `run.rank0.parquet` for `run.parquet`, see `Recording.file`. During the run, `FILE.partial` beside it
            holds what was recorded so far, which `Trace.load` opens if the process is killed; memory stays bounded.
        nvtx: mark calls and frames as NVTX ranges, for Nsight Systems: see `NvtxRanges`.
        via: interception of calls: `tap` patches `nn.Module.__call__` and adds nothing to modules; `hooks` uses torch's
            forward hooks, without a patch and at several times the cost; `auto` is `tap` if its extension is built.
            `flow` patches `__call__` in both, and `nvtx` needs the tap.
        only: `here` records the calls of this thread or task alone, and of functions run in a copy of its context, as
            by `asyncio.to_thread`: one request of a busy server. Threads started by `threading.Thread` are left out,
            unless they run their function by `contextvars.copy_context().run`.

    Collectives of torch.distributed are rows as well if there are several processes, see `trace.schema.CALLS`. All
    processes should begin to record at the same place in the program, where their clocks are compared.

    Raises:
        ValueError: an invalid value for a known fact; an unknown clock, measure or via, or one that is not available
            here; NVTX without the tap; no module that matches `include`; a model that is no module; a file name with
            the ending of another format.
        OSError: the file cannot be written. If its disk fills later, the run goes on without being recorded, and there
            is a RuntimeWarning at the end: `Recording.lost` is the reason, and `Recording.file` the file that was kept.
    """
    from talkerviz.recorder.recording import recording

    return recording(
        model,
        name=name,
        phases=phases,
        clock=clock,
        facts=facts,
        include=include,
        exclude=exclude,
        depth=depth,
        measure=measure,
        file=file,
        nvtx=nvtx,
        via=via,
        only=only,
        trace_class=Trace,
    )


def flight_recorder(
    model: nn.Module | Mapping[str, nn.Module] | None = None,
    *,
    deadline_ms: float | None = None,
    slower_than: float | None = None,
    keep: int = 3,
    file: str | Path = "run.parquet",
    name: str = "model",
    facts: Mapping[str, Any] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    via: str = "auto",
) -> AbstractContextManager[Recording[Trace]]:
    """Record all the time, keep the last frames in memory, and write a file for each frame that was late.

    A frame lasts until the next one begins, or to the end of its `with rec.frame()` block. Its file,
    `run.late412.parquet` for frame 412 of `run.parquet`, has the frames around it as well, and the fact `late`. A line
    in the log `talkerviz` names the module that took most time more than in the other frames. `Recording.late` lists
    these frames, and `Recording.trace` has the last ones. Frames that run while a file is written are not judged.

    Args:
        model: see `recording`.
        deadline_ms: latency in milliseconds above which a frame is late.
        slower_than: multiple of the running median latency above which a frame is late.
        keep: number of frames kept before and after a late one.
        file: path that the files of late frames are named by.
        name: see `recording`; so `facts`, `include`, `exclude` and `via`.
        facts: facts about the run to store.
        include: record only modules whose path matches one of these shell patterns.
        exclude: skip modules whose path matches one of these.
        via: interception of calls.

    Raises:
        ValueError: neither a deadline nor a multiple, or one that is not above 0, or below 1 for the multiple; a
            negative `keep`; as `recording`.
    """
    from talkerviz.recorder.flight_recorder import deadline_of
    from talkerviz.recorder.recording import recording

    return recording(
        model,
        name=name,
        facts=facts,
        include=include,
        exclude=exclude,
        via=via,
        trace_class=Trace,
        deadline=deadline_of(deadline_ms, slower_than, keep, Path(file)),
    )


def record(  # noqa: D417, the other arguments are those of `recording`
    model: nn.Module | Mapping[str, nn.Module],
    run: Callable[[], object] | Tensor | tuple[Any, ...] | Mapping[str, Any],
    name: str = "model",
    phases: Callable[[str], PhaseRule] | None = None,
    clock: str = "cpu",
    facts: Mapping[str, Any] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    depth: int | None = None,
    measure: str | Sequence[str] | None = None,
    file: str | Path | None = None,
    nvtx: bool = False,
    via: str = "auto",
    only: str | None = None,
    warmup: int = 0,
    repeat: int = 1,
) -> Trace:
    """Run a model and record every call of its modules; `recording` describes the other arguments.

    Args:
        model: any module, or several by name: `{"unet": unet, "vae": vae}`.
        run: inputs of a single model: a tensor, a tuple of arguments, or a mapping of arguments by name; or a function
            that runs it, such as `lambda: model(x)`.
        measure: quantities to measure besides times, see `recording`: one, or several such as `("flow", "cost")`. Each
            takes one more run, which is joined to the trace of the timed runs. If that run fails or makes other calls,
            there is a RuntimeWarning, and the trace has the times alone. With `clock="none"`, which takes no times, the
            first quantity is measured in the recorded run itself.
        warmup: number of unrecorded runs before.
        repeat: number of recorded runs.

    Raises:
        ValueError: as `recording`; a `run` that is neither inputs nor a function; a number that is too small.
    """
    from torch import Tensor

    from talkerviz.recorder.record import record

    if isinstance(run, (Tensor, tuple, Mapping)):
        if isinstance(model, Mapping):
            raise ValueError("run: inputs are those of a single model; pass a function that runs them all")
        run = partial(_call, model, run)
    elif not callable(run):
        raise ValueError(
            f"run: neither inputs nor a function, but of type {type(run).__name__}; pass a tensor, a tuple of "
            "arguments, a mapping of arguments by name, or lambda: model(x)"
        )
    return record(
        model,
        run,
        name=name,
        phases=phases,
        clock=clock,
        facts=facts,
        include=include,
        exclude=exclude,
        depth=depth,
        measure=measure,
        file=file,
        nvtx=nvtx,
        via=via,
        only=only,
        warmup=warmup,
        repeat=repeat,
        trace_class=Trace,
    )


def _call(model: nn.Module, inputs: Any) -> object:
    """Call the model with its inputs: keyword arguments, positional arguments, or a single one."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
