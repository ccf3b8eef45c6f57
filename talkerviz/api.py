"""Public surface: traces with their tables and charts, and the functions that record them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from talkerviz.analysis.pivot import table
from talkerviz.flowchart.model import View
from talkerviz.notebook import mimebundle
from talkerviz.render import registry
from talkerviz.render.registry import CHARTS, FORMATS, PICTURES, Given, Style, check_options
from talkerviz.render.tables.registry import TableView
from talkerviz.trace.trace import TraceRecord

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn
    from typing_extensions import Unpack

    from talkerviz.recorder.phases import PhaseRule
    from talkerviz.recorder.recording import Recording

Text = Literal[
    "mermaid",
    "dot",
    "svg",
    "model-explorer",
    "markdown",
    "latex",
    "html",
    "csv",
    "json",
    "perfetto",
    "speedscope",
    "flamegraph",
    "tensorboard",
    "timeline",
]
Picture = Literal["png", "pdf"]


class Options(TypedDict, total=False):
    """All options of `render` as a type; it says what they are."""

    style: Literal["nested", "flat", "source"]
    phase: str | None
    frame: int | None
    module: str | None
    depth: int | None
    open: str | Sequence[str]
    close: str | Sequence[str]
    edges: Literal["flow", "calls"] | None
    fold: bool
    max_nodes: int | None
    by: Literal["module", "class", "phase", "part", "layer", "request", "frame", "call"] | None
    across: Literal["phase", "part", "rank"] | None
    sort: Literal["self", "total", "calls"] | None
    top: int | None


class Trace(TraceRecord):
    """The record of one run, with its tables and charts.

    A `TraceRecord` with methods that draw and print it; see there for the attributes.
    """

    def table(
        self, by: str = "module", sort: str | None = None, top: int | None = None, across: str | None = None
    ) -> pd.DataFrame:
        """Where the time went: a row for each module, class, phase, part, layer, request, frame or call.

        Args:
            by: what a row stands for.
            sort: `self`, `total` or `calls`, largest first; by default `self`, but the run's order for phases, parts
                and frames.
            top: only so many rows; None for all.
            across: set modules or classes side by side, by `phase`, `part` or `rank`.

        Returns:
            The columns of [`summarise`][talkerviz.analysis.summary.summarise], or with `across` those of
            [`pivot`][talkerviz.analysis.pivot.pivot]; times in nanoseconds. What was not measured is
            `<NA>`.

        Raises:
            ValueError: an unknown `by`, `sort` or `across`, or one that has nothing to set side by side; `top` is less
                than 1.
        """
        return table(self, by, sort, top, across)

    @overload
    def render(self, format: Text, **options: Unpack[Options]) -> str: ...
    @overload
    def render(self, format: Picture, **options: Unpack[Options]) -> bytes: ...
    @overload
    def render(self, format: str, **options: Unpack[Options]) -> str | bytes: ...
    def render(
        self,
        format: str,
        *,
        style: str = "nested",
        phase: str | None = None,
        frame: int | None = None,
        module: str | None = None,
        depth: int | None = None,
        open: str | Sequence[str] = (),
        close: str | Sequence[str] = (),
        edges: str | None = None,
        fold: bool = True,
        max_nodes: int | None = None,
        by: str | None = None,
        across: str | None = None,
        sort: str | None = None,
        top: int | None = None,
    ) -> str | bytes:
        """Draw the trace, or write a table of it or another program's file.

        Args:
            format: a chart, `mermaid`, `dot`, `svg`, `png`, `pdf` or `model-explorer`; a table, `markdown`, `latex`,
                `html`, `csv` or `json`; or `perfetto`, `speedscope`, `flamegraph`, `tensorboard` or `timeline`.
            style: of a chart: `nested` folds what repeats; `flat` has a box a call; `source`, Mermaid only, is the
                document that this project grew from.
            phase: only this phase, as the next three in any format.
            frame: only this frame, from 0.
            module: only modules whose path fits this pattern, as in a shell, and what is in them.
            depth: only calls nested at most this deep, 0 for those at the top; of a nested chart, open no further.
            open: patterns of paths that a nested chart opens, however deep.
            close: patterns of paths that it does not open.
            edges: what its arrows are: `flow` for where tensors went, `calls` for call order; by default `flow` if it
                was recorded.
            fold: whether it draws once what repeats.
            max_nodes: no more boxes in it; what does not fit is folded. By default 59.
            by: what a table's row stands for: `module` by default, `class`, `phase`, `part`, `layer`, `request`,
                `frame` or `call`.
            across: what it sets side by side: `phase`, `part` or `rank`.
            sort: which row comes first: `self`, `total` or `calls`.
            top: only so many rows.

        Returns:
            The bytes of a PNG or PDF; of anything else its text.

        Raises:
            ValueError: an unknown format or value of an option, an option that the format does not have, no such phase,
                frame or module, or what cannot be made here, with what to install; the message says it in one line.
        """
        if format not in FORMATS:
            raise ValueError(f"unknown format {format!r}: choose from {', '.join(FORMATS)}")
        styles = [known.value for known in Style]
        if style not in styles:
            raise ValueError(f"unknown style {style!r}: choose from {', '.join(styles)}")
        for option, number, least in (("depth", depth, 0), ("max_nodes", max_nodes, 1), ("top", top, 1)):
            if number is not None and number < least:
                raise ValueError(f"{option} must be at least {least}, not {number}")
        of_tables = {"by": by, "across": across, "sort": sort, "top": top}
        of_charts = {"open": open, "close": close, "edges": edges, "max_nodes": max_nodes, "fold": not fold}
        how = Style(style)
        check_options(format, how, Given(of_tables, of_charts, "style"))
        opened = how is Style.nested and format in CHARTS
        chosen = self.select(phase, frame, None if opened else depth, module)
        view = View(depth, _patterns(open), _patterns(close), max_nodes, edges, fold)
        drawn = registry.render(chosen, format, how, view, TableView(by or "module", across, sort, top))
        return drawn if format in PICTURES else drawn.decode()

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, str]:
        """Return what Jupyter shows of the trace, by MIME type."""
        return mimebundle(self, include, exclude)


def recording(
    model: nn.Module,
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

    Nothing is left on the model, and `trace` holds the calls made until the end, whatever that is.

    Args:
        model: any module.
        name: the root's name in the trace; the path of every module begins with it.
        phases: makes of the root's name the rule by which one run divides into phases and frames, such as the class
            `TalkerPhases`. By default each pass is a frame, and by the positions and the cache that go into it
            `prefill`, `decode`, or without any cache `forward`: see `PassPhases`.
        clock: `cpu` for host times in nanoseconds, `cuda` for device times as well, `none` for shapes alone.
        facts: what to note of the run, JSON values; versions, device and threads are noted anyway.
        include: record only modules whose path fits one of these patterns, as in a shell; `*` crosses dots.
        exclude: nor those that fit one of these.
        depth: nor those more than so many levels below the root.
        measure: what slows the run down, so that its times say nothing: take those from another recording, and put the
            two together with `join`. `cost` counts floating-point operations and bytes of each call, on any device;
            `memory` what it allocates and `busy` how long its kernels run, on CUDA devices; `flow` follows the tensors
            from operation to operation, on the thread that begins the recording, for `Trace.flow`.
        file: keep the trace in this file; each of several processes, as `torchrun` starts them, in one with its rank in
            the name, `run.rank0.parquet` for `run.parquet`, see `Recording.file`. While the run goes on, `FILE.partial`
            beside it holds what was recorded, and `Trace.load` opens it if the process is killed; memory stays bounded.
        nvtx: mark calls and frames as NVTX ranges, for Nsight Systems: see `NvtxRanges`.
        via: how calls are seen: `tap`, at `nn.Module.__call__`, with nothing on the modules; `hooks`, through torch's
            forward hooks, with nothing patched and at several times the cost; `auto` takes the tap where it is built.
            `flow` patches `__call__` either way, and `nvtx` needs the tap.
        only: `here` records the calls of this thread or task alone, and of what is run in a copy of its context, as
            `asyncio.to_thread` does: one request of a server that is busy with others. Threads begun by
            `threading.Thread` are left out, unless they run what they do by `contextvars.copy_context().run`.

    Collectives of torch.distributed are rows as well where there are several processes, see `trace.schema.CALLS`. All
    of them should begin to record at the same place in the program: their clocks are compared then.

    Raises:
        ValueError: a fact that has a meaning here, with a value that it cannot have; an unknown clock, measure or via,
            or one that is not possible here, or NVTX that is not; no module that fits; what is no module; a file whose
            name is that of another format.
        OSError: the file cannot be written to. Where its disk fills later, the run goes on without being recorded, and
            there is a RuntimeWarning at the end: `Recording.lost` says why, and `Recording.file` is what was kept.
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


def record(
    model: nn.Module,
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
    """Call `run` and record every call it makes of the model's modules; see `recording` for the other arguments.

    Args:
        model: any module.
        run: a function that runs it, such as `lambda: model(x)`, or its inputs: a tensor, a tuple of arguments, or a
            mapping of arguments by name.
        measure: what to measure beside the times, see `recording`: one, or several such as `("flow", "cost")`. Each is
            measured in one more call of `run` and joined to the trace of the timed ones. Where that call fails, or is
            not the same run again, there is a RuntimeWarning, and the trace has the times without the measure. With
            `clock="none"`, which takes no times, the first is measured in the recorded run itself.
        warmup: call `run` so often first, and record nothing of it.
        repeat: record so many calls of `run`, each a run of the trace.

    Raises:
        ValueError: as `recording`; a `run` that cannot be called; a number that is too small.
    """
    from torch import Tensor

    from talkerviz.recorder.record import record

    return record(
        model,
        partial(_call, model, run) if isinstance(run, (Tensor, tuple, Mapping)) else run,
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
    """Call the model with its inputs: by name from a mapping, by place from a tuple, or a single one."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
