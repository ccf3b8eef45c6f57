"""Timeline of several ranks as SVG: calls and waits of each rank.

Below a rank's calls are its collectives, in one colour until the last rank arrives and in another afterwards. A line
leads from the last rank to those that waited for it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.analysis.collective_waits import collective_waits
from talkerviz.analysis.segments import segments
from talkerviz.analysis.stragglers import stragglers
from talkerviz.render.charts.palette import FAILED
from talkerviz.render.escape import one_line, shortened
from talkerviz.render.text import share_text, time_text
from talkerviz.render.viewers.common import call_name, check_timed, joined
from talkerviz.trace import TraceRecord

_WIDTH, _LEFT, _RIGHT = 1600.0, 132.0, 24.0
_ROW, _STRIP, _LANE, _GAP = 17.0, 14.0, 20.0, 18.0
_CHARACTER = 6.7  # pixels per character of a label
_WIDE_CHARACTER = 7.6  # pixels per character of a sentence
_MIN_WIDTH = 0.5  # pixels; narrower boxes are merged
_MAX_ROWS = 24  # rows of calls, of all ranks together
_TICKS = 12  # maximum on the time axis
_MIN_WAIT_WIDTH = 1.5  # pixels of a wait that gets a line to the last rank
_MIN_LABEL_SHARE = 0.75  # of a label's characters; without room for them there is none
_CALLS = ("#e3eaf2", "#cfdbe8", "#bbcdde", "#a8bed4")
_SOFT, _GRID = "#5b6875", "#e6eaee"
_WAIT, _TRANSFER, _LAST = "#f5a04c", "#2f7fc1", "#c8402f"
_CAME_LAST = ("came last", _LAST)
_STYLE = """\
text { font: 11px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2933; }
.title { font-size: 17px; font-weight: 600; } .said { font-size: 13px; } .rank { font-size: 13px; font-weight: 600; }
.soft { fill: #5b6875; } .end { text-anchor: end; } .middle { text-anchor: middle; } .on { fill: #fff; }
"""


@dataclass(frozen=True)
class _Scale:
    first: float
    last: float

    def x(self, ns: float) -> float:
        return _LEFT + (ns - self.first) / max(self.last - self.first, 1) * (_WIDTH - _LEFT - _RIGHT)

    def width(self, ns: float) -> float:
        return self.x(self.first + ns) - _LEFT


def render_rank_timeline_svg(trace: TraceRecord) -> bytes:
    """Draw the timeline of a trace, usually of one selected frame.

    Raises:
        RenderError: the trace has no times.
    """
    check_timed(trace, "timeline")
    return joined(_pieces(trace))


def _pieces(trace: TraceRecord) -> Iterator[str]:
    calls = trace.calls[trace.calls["host_ns"].notna()]
    start = calls["host_start_ns"].to_numpy(float)
    scale = _Scale(float(start.min()), float((start + calls["host_ns"].to_numpy(float)).max()))
    ranks = sorted(calls["rank"].unique().tolist())
    held = collective_waits(trace)
    found = stragglers(trace) if len(ranks) > 1 else None
    shares = dict(zip(found.ranks["rank"], found.ranks["wait_share"], strict=True)) if found else {}

    body: list[str] = []
    top = 74.0
    lanes: dict[int, float] = {}  # vertical position of each rank's collectives
    of_module = calls["peers"].isna()
    rows = max(1, _MAX_ROWS // len(ranks))
    for rank in ranks:
        of_rank = calls[(calls["rank"] == rank) & of_module]
        began = top
        body += _stretches(of_rank, scale, top)
        top += _STRIP + 3
        drawn, lines = _calls(of_rank, scale, top, rows)
        body += drawn
        top += lines * _ROW
        lanes[rank] = top + 4
        top += 4 + (_LANE if (held["rank"] == rank).any() else 0)
        body += _rank_name(rank, shares.get(rank), began, top)
        top += _GAP
    body += _collectives(held, scale, lanes)
    facts = trace.facts
    title = f"{facts.get('model', 'model')}, {len(ranks)} ranks" if found else str(facts.get("model", "model"))
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {top + 14:.0f}" width="{_WIDTH:.0f}"'
        f' height="{top + 14:.0f}">\n<style>{_STYLE}</style>\n<rect width="100%" height="100%" fill="#fff"/>\n'
    )
    yield _text(_LEFT, 24, title, "title")
    if found:
        yield _text(_LEFT, 44, shortened(found.sentence, int((_WIDTH - _LEFT) / _WIDE_CHARACTER)), "said")
        yield from _legend()
    yield from _axis(scale, 66, top)
    yield from body
    yield "</svg>\n"


def _stretches(calls: pd.DataFrame, scale: _Scale, top: float) -> Iterator[str]:
    for number, (_, (phase, frame), start, end) in enumerate(segments(calls, ["phase", "frame"])):
        x, width = scale.x(start), scale.width(end - start)
        if width < _MIN_WIDTH:
            continue
        name = str(phase) if frame is None else f"{phase} · frame {frame}"
        yield _rect(x, top, width, _STRIP, ("#eef1e6", "#e0e6d2")[number % 2], f"{name}: {time_text(end - start)}")
        yield _label(x, top + 11, width, (name, str(phase) if frame is None else f"frame {frame}"), "soft")


def _calls(calls: pd.DataFrame, scale: _Scale, top: float, most: int) -> tuple[list[str], int]:
    """Draw each thread's calls by depth; return the boxes and the number of rows."""
    drawn: list[str] = []
    line = 0
    for _, of_thread in calls.groupby("thread"):
        depths = sorted(of_thread["depth"].unique().tolist())[:most]
        for depth in depths:
            drawn += _row(of_thread[of_thread["depth"] == depth], scale, top + line * _ROW, _CALLS[depth % len(_CALLS)])
            line += 1
    return drawn, line


def _row(calls: pd.DataFrame, scale: _Scale, top: float, fill: str) -> Iterator[str]:
    start, took = calls["host_start_ns"].to_numpy(float), calls["host_ns"].to_numpy(float)
    x = np.array([scale.x(ns) for ns in start])
    width = np.array([scale.width(ns) for ns in took])
    wide = width >= _MIN_WIDTH
    # Calls too narrow to see are drawn as bands.
    cells = np.unique(np.floor(x[~wide] / _MIN_WIDTH))
    for band in np.split(cells, np.flatnonzero(np.diff(cells) > 1) + 1):
        if len(band):
            yield _rect(band[0] * _MIN_WIDTH, top, len(band) * _MIN_WIDTH, _ROW - 2, fill)
    names = zip(*(calls[name][wide].astype(object) for name in ("path", "class", "host_ns", "error")), strict=True)
    for at, across, (path, kind, ns, error) in zip(x[wide], width[wide], names, strict=True):
        failed = not pd.isna(error)
        tooltip = f"{path} {kind}: {time_text(ns)}" + (f", {error}" if failed else "")
        yield _rect(at, top, across, _ROW - 2, fill, tooltip, FAILED if failed else "")
        name = call_name(str(path), str(kind))
        yield _label(at, top + 11.5, across, (name, name.removesuffix(f" {kind}")), "")


def _collectives(held: pd.DataFrame, scale: _Scale, lanes: Mapping[int, float]) -> Iterator[str]:
    lines: dict[str, None] = {}
    for wait in held.rename(columns={"class": "kind"}).itertuples():
        top, middle = lanes[wait.rank], lanes[wait.rank] + _LANE / 2
        x, waiting, whole = scale.x(wait.start_ns), scale.width(wait.wait_ns), scale.width(wait.end_ns - wait.start_ns)
        names = (wait.kind,) if wait.begins else (f"wait for {wait.kind}", "wait")
        tooltip = f"{wait.module}.{wait.kind} among {wait.peers}: {time_text(wait.end_ns - wait.start_ns)}"
        if wait.wait_ns > 0:
            tooltip += f", {time_text(wait.wait_ns)} of it waiting for rank {wait.last}"
        if waiting > 0:
            yield _rect(x, top, max(waiting, _MIN_WIDTH), _LANE - 2, _WAIT, tooltip)
        yield _rect(x + waiting, top, max(whole - waiting, _MIN_WIDTH), _LANE - 2, _TRANSFER, tooltip)
        if waiting < whole / 2:
            yield _label(x + waiting, top + 13, whole - waiting, names, "on")
        else:
            yield _label(x, top + 13, waiting, names, "")
        if waiting >= _MIN_WAIT_WIDTH and wait.last != wait.rank:
            at, theirs = scale.x(wait.last_ns), lanes[wait.last] + _LANE / 2
            lines[
                f'<path d="M{at:.1f} {theirs:.1f}V{middle:.1f}" stroke="{_LAST}" stroke-opacity=".6"/>'
                f'<circle cx="{at:.1f}" cy="{theirs:.1f}" r="3" fill="{_LAST}"/>\n'
            ] = None
    yield from lines


def _rank_name(rank: int, waits: Any, top: float, bottom: float) -> Iterator[str]:
    yield _text(_LEFT - 12, top + 12, f"rank {rank}", "rank end")
    if not pd.isna(waits):
        yield _text(_LEFT - 12, top + 27, f"waits {share_text(waits)}", "soft end")
    yield f'<path d="M{_LEFT - 6:.1f} {top:.1f}V{bottom - 2:.1f}" stroke="{_SOFT}" stroke-opacity=".5"/>\n'


def _legend() -> Iterator[str]:
    x = _WIDTH - _RIGHT
    for name, fill in (("transfer", _TRANSFER), ("waits for the last rank", _WAIT), ("calls", _CALLS[1]), _CAME_LAST):
        yield _text(x, 24, name, "soft end")
        x -= len(name) * _CHARACTER * 0.78 + 18
        if name == _CAME_LAST[0]:
            yield f'<circle cx="{x:.1f}" cy="20.5" r="3" fill="{fill}"/>\n'
        else:
            yield _rect(x, 15, 11, 11, fill)
        x -= 14


def _axis(scale: _Scale, top: float, bottom: float) -> Iterator[str]:
    whole = max(scale.last - scale.first, 1)
    step = 10 ** math.floor(math.log10(whole / _TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if whole / (step * factor) <= _TICKS)
    for number in range(int(whole // step) + 1):
        x = scale.x(scale.first + number * step)
        yield f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{_GRID}"/>\n'
        yield _text(x, top - 3, time_text(number * step) if number else "0", "soft middle")


def _rect(x: float, y: float, width: float, height: float, fill: str, tooltip: str = "", border: str = "") -> str:
    stroke = f' stroke="{border}" stroke-width="1.5"' if border else ""
    # A small gap between neighbours, if there is room.
    shape = (
        f'x="{x:.2f}" y="{y:.1f}" width="{width - 0.6 if width > 2 else width:.2f}" height="{height:.1f}" fill="{fill}"'
    )
    if not tooltip:
        return f"<rect {shape}{stroke}/>\n"
    return f"<rect {shape}{stroke}><title>{html.escape(one_line(tooltip))}</title></rect>\n"


def _label(x: float, y: float, width: float, texts: Sequence[str], kind: str) -> str:
    """Draw the first text that fits, or the last one shortened."""
    most = int((width - 6) / _CHARACTER)
    texts = [one_line(text) for text in texts]
    text = next((text for text in texts if len(text) <= most), shortened(texts[-1], max(most, 3)))
    return _text(x + 4, y, text, kind) if most >= _MIN_LABEL_SHARE * len(texts[-1]) else ""


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{of_kind}>{html.escape(one_line(text))}</text>\n'
