"""Two runs side by side, and `talkerviz diff` of them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import Capture, talkerviz
from golden_files import check_golden
from rich.console import Console
from sample_trace import call, make_trace, tensor

from talkerviz.analysis.compare import WHOLE, compare, slower
from talkerviz.analysis.confidence import certain_of, chance_of_equal, ratio_interval
from talkerviz.api import Trace
from talkerviz.render.tables.writers import html_table, markdown_table
from talkerviz.render.terminal.comparison import comparison_cells, notes_on_comparison, put_together, render_comparison


def frames_of(own: Sequence[int], inner: Sequence[int] | None = None, **facts: Any) -> Trace:
    """Return a trace with a frame a number: the self time of the root and of its one child call."""
    rows = []
    for frame, (root, below) in enumerate(zip(own, inner or [100] * len(own), strict=True)):
        rows.append(call(2 * frame, None, 0, "net", "Net", root + below, root, frame=frame))
        rows.append(call(2 * frame + 1, 2 * frame, 1, "net.a", "Linear", below, below, frame=frame))
    return make_trace(rows, **facts)


def row_of(table: pd.DataFrame, **where: str) -> pd.Series:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def talker_like(phases: dict[str, Sequence[int]], runs: int = 1, factor: float = 1, **facts: Any) -> Trace:
    """Return calls of a phase, one number a frame from frame 0; None for no frame."""
    rows: list[Any] = []
    for run in range(runs):
        for phase, times in phases.items():
            first = 1 if phase == "decode" else 0
            for frame, time in enumerate(times, start=first):
                at = None if phase == "setup" else frame
                own = round(time * factor)
                rows.append(call(len(rows), None, 0, f"net.{phase}", "Net", own, own, phase=phase, frame=at, run=run))
    return make_trace(rows, **facts)


# The interval.


def test_interval_of_many_values_is_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    interval = ratio_interval(rng.normal(100, 10, 2000), rng.normal(110, 10, 2000))
    assert interval is not None
    # The median's standard error is sqrt(pi / 2) times the mean's.
    error = 1.1 * math.hypot(10 / 100, 10 / 110) * math.sqrt(math.pi / 2 / 2000)
    assert interval == pytest.approx((1.1 - 1.96 * error, 1.1 + 1.96 * error), abs=error)


def test_no_interval_of_one_value_or_of_no_time() -> None:
    assert ratio_interval(np.array([100.0]), np.full(9, 100.0)) is None
    assert ratio_interval(np.full(9, 100.0), np.array([100.0])) is None
    assert ratio_interval(np.zeros(9), np.full(9, 100.0)) is None


@pytest.mark.parametrize("size", [9, 30])
def test_one_outlier_opens_no_interval(size: int) -> None:
    rng = np.random.default_rng(1)
    before, after = rng.normal(100, 1, size), rng.normal(1600, 16, size)
    after[size // 2] *= 1000
    before[size // 3] *= 1000
    interval = ratio_interval(before, after)
    assert interval is not None
    assert 15 < interval[0] < interval[1] < 17
    assert chance_of_equal(before, after) < 0.05


@pytest.mark.parametrize("sizes", [(3, 7), (7, 7), (7, 31), (40, 40)])
def test_interval_covers_the_ratio(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        interval = ratio_interval(rng.normal(100, 3, sizes[0]), rng.normal(120, 9, sizes[1]))
        assert interval is not None
        covered += interval[0] <= 1.2 <= interval[1]
    assert covered >= 0.92 * 400


def test_values_that_resemble_their_neighbours_count_for_fewer() -> None:
    rng = np.random.default_rng(2)
    certain = 0
    for _ in range(200):
        one, two = (100 + np.repeat(rng.normal(0, 5, 5), 10) + rng.normal(0, 0.5, 50) for _ in range(2))
        certain += chance_of_equal(one, two) < 0.05
    assert certain <= 0.15 * 200  # without regard to that, most of them


def test_equal_values_count_each() -> None:
    assert chance_of_equal(np.full(20, 100.0), np.full(20, 400.0)) < 0.001
    assert ratio_interval(np.full(20, 100.0), np.full(20, 400.0)) == (4, 4)


def test_equal_runs_differ_in_one_of_twenty() -> None:
    rng = np.random.default_rng(3)
    chances = [chance_of_equal(rng.normal(100, 3, 12), rng.normal(100, 3, 12)) for _ in range(400)]
    assert 0.02 * 400 <= sum(chance < 0.05 for chance in chances) <= 0.08 * 400
    assert sum(certain_of(chances)) <= 2
    assert certain_of([]) == []
    assert certain_of([0.001, 0.9, 0.9]) == [True, False, False]


# The table.


def test_numbers_by_hand() -> None:
    before, after = frames_of([9_999, 200, 220, 240], [9_999, 50, 50, 50]), frames_of([300, 330, 363])
    table = compare(before, after)
    assert table["module"].tolist() == ["net", "net.a"]
    assert table["class"].tolist() == ["Net", "Linear"]
    assert table["phase"].tolist() == ["decode"] * 2
    net, inner = row_of(table, module="net"), row_of(table, module="net.a")
    # The first frame of either is left out.
    assert (net["frames_before"], net["frames_after"]) == (3, 2)
    assert (net["self_before_ns"], net["self_after_ns"]) == (220, 346.5)
    assert (net["total_before_ns"], net["total_after_ns"]) == (270, 446.5)
    assert net["change"] == pytest.approx(0.575)
    assert (inner["self_before_ns"], inner["self_after_ns"], inner["change"]) == (50, 100, 1)
    # All frames are equal.
    assert (inner["low"], inner["high"]) == (1, 1)
    assert not inner["significant"]  # so few frames differ by chance in one of ten
    assert (net["calls_before"], net["calls_after"]) == (1, 1)
    assert set(table["status"]) == {"same"}
    assert table.attrs["clock"] == "host"


def test_the_first_frame_counts_after_a_warm_up_and_where_there_are_few() -> None:
    warm = frames_of([400, 200, 300], warmup_ns=[1])
    few = frames_of([400, 200])
    table = compare(warm, few)
    assert row_of(table, module="net")["frames_before"] == 3
    assert row_of(table, module="net")["frames_after"] == 2
    assert row_of(table, module="net")["self_before_ns"] == 300


def test_one_frame_has_no_interval() -> None:
    table = compare(frames_of([100]), frames_of([120]))
    net = row_of(table, module="net")
    assert net["change"] == pytest.approx(0.2)
    assert net[["low", "high"]].isna().all()
    assert not net["significant"]


def test_phases_begin_with_a_whole_frame() -> None:
    # Frame 0 has the prefill, and the last one is cut short: they are no usual frames.
    times = {"setup": [5], "prefill": [1000], "predictor": [30, 40, 50, 60], "decode": [100, 110, 120, 130]}
    trace = talker_like(times, warmup_ns=[1])
    table = compare(trace, trace, "phase")
    assert table["phase"].tolist() == [WHOLE, "setup", "prefill", "predictor", "decode"]
    whole = table.iloc[0]
    assert whole["frames_before"] == 3
    assert whole["self_before_ns"] == (140 + 160 + 180) / 3
    assert whole["total_before_ns"] == whole["self_before_ns"]
    assert whole["calls_before"] == 2
    assert row_of(table, phase="decode")["frames_before"] == 4
    assert row_of(table, phase="setup")["frames_before"] == 1
    assert list(compare(frames_of([1, 2]), frames_of([1, 2]), "phase")["phase"]) == ["decode"]


def test_runs_give_frames() -> None:
    before, after = (talker_like({"setup": [5], "prefill": [1000]}, runs=4, factor=f, warmup_ns=[1]) for f in (1, 1.5))
    table = compare(before, after, "phase")
    prefill = row_of(table, phase="prefill")
    assert prefill["frames_before"] == 4
    assert prefill["low"] == pytest.approx(0.5)
    cut = Trace(before.calls, before.modules, {**before.facts, "cut_short": [1]})
    assert row_of(compare(cut, after, "phase"), phase="prefill")["frames_before"] == 3


def test_new_vanished_and_changed() -> None:
    def trace(*calls: tuple[str, str, int]) -> Trace:
        rows = [
            call(number, None, 0, path, kind, 10, 10, frame=0, inputs=(tensor("0", size),))
            for number, (path, kind, size) in enumerate(calls)
        ]
        return make_trace(rows)

    before = trace(("net.a", "A", 1), ("net.b", "B", 1), ("net.c", "C", 1), ("net.e", "Linear", 1), ("net.f", "F", 1))
    after = trace(
        ("net.a", "MyA", 1),
        ("net.c", "C", 2),
        ("net.d", "D", 1),
        ("net.e", "Conv", 1),
        ("net.f", "F", 1),
        ("net.f", "F", 1),
    )
    table = compare(before, after).set_index("module")
    assert table["status"].to_dict() == {
        "net.a": "same",  # its class has another prefix
        "net.b": "vanished",
        "net.c": "changed",
        "net.d": "new",
        "net.e": "changed",
        "net.f": "changed",
    }
    assert table.loc["net.c", ["shapes_before", "shapes_after"]].tolist() == ["1 → 1x4", "2 → 1x4"]
    assert table.loc["net.a", ["shapes_before", "shapes_after"]].tolist() == ["", ""]
    assert table.loc["net.e", "class"] == "Linear ⇒ Conv"
    assert pd.isna(table.loc["net.d", "self_before_ns"])
    assert pd.isna(table.loc["net.d", "change"])
    assert table.loc["net.d", "self_after_ns"] == 10
    assert table.loc["net.f", ["calls_before", "calls_after"]].tolist() == [1, 2]


def test_shapes_of_more_frames_are_no_change() -> None:
    def trace(frames: int) -> Trace:
        return make_trace(
            [
                call(frame, None, 0, "net", "Net", 10, 10, frame=frame, inputs=(tensor("0", 20 + frame),))
                for frame in range(frames)
            ]
        )

    assert compare(trace(3), trace(9))["status"].tolist() == ["same"]


def test_classes_and_layers_of_different_presets() -> None:
    def trace(layers: int, prefix: str) -> Trace:
        rows = [call(0, None, 0, "net", f"{prefix}Net", 1, 1)]
        for layer in range(layers):
            rows.append(call(len(rows), None, 0, f"net.layers.{layer}", f"{prefix}TextNorm", 10, 10))
            rows.append(call(len(rows), None, 0, f"net.layers.{layer}.norm", f"{prefix}Norm", 5, 5))
        return make_trace(rows)

    before, after = trace(2, ""), trace(4, "Qwen")
    classes = compare(before, after, "class").set_index("class")
    assert sorted(classes.index) == ["Net", "Norm", "TextNorm"]
    assert classes["calls_before"].to_dict() == {"Net": 1, "Norm": 2, "TextNorm": 2}
    assert classes["calls_after"].to_dict() == {"Net": 1, "Norm": 4, "TextNorm": 4}
    layers = compare(before, after, "layer").set_index("layer")
    assert layers["self_before_ns"].to_dict() == {"net": 1, "net.layers.#": 30}
    assert layers["self_after_ns"].to_dict() == {"net": 1, "net.layers.#": 60}
    assert compare(before, after)["status"].value_counts().to_dict() == {"same": 5, "new": 4}


def test_device_times_where_both_have_them() -> None:
    plain = frames_of([100, 100])
    timed = Trace(
        plain.calls.assign(**{name: pd.array([7] * 4, "Int64") for name in ("device_ns", "device_self_ns")}),
        plain.modules,
        plain.facts,
    )
    both = compare(timed, timed, "phase")
    assert both.attrs["clock"] == "device"
    assert both["self_before_ns"].tolist() == [14]
    assert compare(plain, timed, "phase").attrs["clock"] == "host"


def test_what_cannot_be_compared() -> None:
    trace = frames_of([100, 100])
    untimed = Trace(trace.calls.assign(host_ns=pd.array([pd.NA] * 4, "Int64")), trace.modules, trace.facts)
    with pytest.raises(ValueError, match="the second trace has no times: record it with --clock cpu or cuda"):
        compare(trace, untimed)
    with pytest.raises(ValueError, match="cannot compare by 'frame': choose from pattern, module, class, phase, layer"):
        compare(trace, trace, "frame")
    with pytest.raises(ValueError, match="nothing is certain"):
        slower(compare(frames_of([1]), frames_of([1]), "phase"), 0.05)


# False alarms.


def noisy(rng: np.random.Generator, frames: int, factor: float) -> Trace:
    """Frames that differ by 3 %, one in twenty of which takes a quarter longer, and a first one that takes double."""
    times = {}
    for phase, mean in (("prefill", 4e6), ("predictor", 8e6), ("decode", 2e6)):
        count = 1 if phase == "prefill" else frames
        values = mean * rng.lognormal(0, 0.03, count) * np.where(rng.random(count) < 0.05, 1.25, 1)
        values[0] *= 2
        times[phase] = values
    return talker_like(times, factor=factor)


@pytest.mark.parametrize(("frames", "found_at_least"), [(8, 0), (40, 0.9)])
def test_alarms(frames: int, found_at_least: float) -> None:
    rng = np.random.default_rng(2)
    trials, false, found = 20, 0, 0
    for _ in range(trials):
        before, same, worse = noisy(rng, frames, 1), noisy(rng, frames, 1), noisy(rng, frames, 1.1)
        false += len(slower(compare(before, same, "phase"), 0.05)) > 0
        found += len(slower(compare(before, worse, "phase"), 0.05)) > 0
    assert false <= 1
    assert found >= found_at_least * trials


# What is printed.


def two_traces() -> tuple[Trace, Trace]:
    rng = np.random.default_rng(3)
    pair = []
    for factor, extra in ((1.0, "net.gone"), (1.3, "net.<new>|x")):
        rows: list[Any] = [call(0, None, 0, "net.embed", "Embedding", 5_000, 5_000, phase="setup", frame=None)]
        for frame in range(6):
            phase = "decode" if frame else "prefill"
            own = round(factor * 100_000 * rng.normal(1, 0.02))
            at = {"phase": phase, "frame": frame}
            rows.append(call(len(rows), None, 0, "net", "Net", own + 60_000, own, **at))
            root = len(rows) - 1
            size = 4 if factor == 1 else 8
            rows.append(
                call(root + 1, root, 1, "net.head", "Linear", 50_000, 50_000, **at, inputs=(tensor("0", 1, size),))
            )
            rows.append(call(root + 2, root, 1, extra, "Gone" if factor == 1 else "Extra", 10_000, 10_000, **at))
            rows.append(call(root + 3, None, 0, "net.p", "Net", 40_000, 40_000, phase="predictor", frame=frame))
        pair.append(make_trace(rows))
    return pair[0], pair[1]


@pytest.mark.parametrize("by", ["module", "phase"])
def test_goldens(by: str) -> None:
    phases = compare(*two_traces(), "phase")
    shown = put_together(phases, compare(*two_traces(), by), by, 5)
    console = Console(width=180, color_system=None, record=True, file=io.StringIO())
    console.print(render_comparison(shown, by, 5, 3 if by == "module" else 0, 180))
    printed = "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"
    check_golden(f"compare_by_{by}.txt", printed)
    cells = comparison_cells(shown, by, notes_on_comparison(phases))
    check_golden(f"compare_by_{by}.md", markdown_table(cells))
    check_golden(f"compare_by_{by}.html", html_table(cells))


@pytest.mark.parametrize("width", [60, 80, 100, 120, 150])
def test_a_narrow_terminal_has_fewer_columns(width: int) -> None:
    phases, rows = (compare(*two_traces(), by) for by in ("phase", "module"))
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    console.print(render_comparison(put_together(phases, rows, "module", 5), "module", 5, 0, width))
    printed = console.export_text()
    assert all(len(line) <= width for line in printed.splitlines())
    for text in ("phase", "module", "self after", "change", "net.<new>|x", *phases["phase"]):
        assert text in printed


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    found = tmp_path / "before.parquet", tmp_path / "after.parquet"
    for trace, path in zip(two_traces(), found, strict=True):
        trace.save(path)
    return found


def test_the_terminal(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert talkerviz(monkeypatch, "diff", *files) == 0
    shown = capsys.readouterr().out
    assert re.search(r"a whole frame .*all of it .*net\.head", shown, re.S)
    assert "No interval for setup, prefill: it takes two frames in both." in shown
    assert "1 changed, 1 added, 1 removed" in shown  # what they call stands below
    assert talkerviz(monkeypatch, "diff", *files, "--top", 1) == 0
    assert "more rows: --top" in capsys.readouterr().out
    for by in ("class", "layer", "phase"):
        assert talkerviz(monkeypatch, "diff", *files, "--by", by) == 0
        assert "a whole frame" in capsys.readouterr().out


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.count += tag == "td"


def test_other_formats(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    assert talkerviz(monkeypatch, "diff", *files, "-f", "markdown", "--by", "phase") == 0
    assert "| a whole frame" in capfd.readouterr().out
    out = tmp_path / "diff.html"
    assert talkerviz(monkeypatch, "diff", *files, "-f", "html", "-o", out) == 0
    cells = _Cells()
    cells.feed(out.read_text())
    assert cells.count > 50
    assert "<new>" not in out.read_text()
    for fmt in ("mermaid", "dot"):
        assert talkerviz(monkeypatch, "diff", *files, "-f", fmt) == 0
        assert "gone" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--fail-above", "5%"), 1),
        (("--fail-above", "5"), 1),
        (("--fail-above", "0", "-f", "markdown"), 1),
        (("--fail-above", "5%", "-f", "mermaid"), 1),
        (("--fail-above", "50 %"), 0),
    ],
)
def test_fail_above(
    options: tuple[str, ...], code: int, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    assert talkerviz(monkeypatch, "diff", *files, *options) == code
    shown = capfd.readouterr()
    assert shown.out
    if code:
        assert re.fullmatch(
            r"talkerviz: decode is slower by \+\d+\.\d % \(95 % interval \+\S+ to \+\S+ %\), more than --fail-above "
            rf"{options[1]}; so are a whole frame\n",
            shown.err,
        )
    else:
        assert shown.err == ""
    before, after = files
    assert talkerviz(monkeypatch, "diff", after, before, *options) == 0  # it has become faster
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fail-above", "much"), "--fail-above much: give a percentage such as 5%"),
        (("--fail-above", "-5%"), "--fail-above -5%: give a percentage such as 5%"),
        (("--fail-above", "nan"), "--fail-above nan: give a percentage such as 5%"),
        (("--by", "frame"), "Invalid value for '--by'"),
        (("-f", "latex"), "unknown format 'latex': choose from markdown, html, csv, json, mermaid"),
        (("-f", "svg", "--by", "phase"), "--by: only markdown, html, csv, json have it, not svg"),
        (
            ("-f", "html", "--max-nodes", "5"),
            "--max-nodes: only mermaid, dot, svg, png, pdf, model-explorer have it, not html",
        ),
    ],
)
def test_bad_options(
    options: tuple[str, ...],
    message: str,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    assert talkerviz(monkeypatch, "diff", *files, *options) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_without_times(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    trace = two_traces()[1]
    untimed = tmp_path / "untimed.parquet"
    none = {
        name: pd.array([pd.NA] * len(trace.calls), "Int64") for name in ("host_start_ns", "host_ns", "host_self_ns")
    }
    Trace(trace.calls.assign(**none), trace.modules, trace.facts).save(untimed)
    assert talkerviz(monkeypatch, "diff", files[0], untimed) == 0
    shown = capsys.readouterr().out
    assert "No times are compared: the second trace has no times" in shown
    assert "1 changed, 1 added, 1 removed" in shown
    for options in (("--by", "phase"), ("-f", "html"), ("--fail-above", "5%")):
        assert talkerviz(monkeypatch, "diff", files[0], untimed, *options) == 2
        assert "the second trace has no times: record it with --clock cpu or cuda" in capsys.readouterr().err


def test_nothing_is_certain_of_single_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    path = tmp_path / "one.parquet"
    frames_of([100]).save(path)
    assert talkerviz(monkeypatch, "diff", path, path, "--fail-above", "5%") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "so nothing is certain: record more with --frames or --repeat" in shown.err
