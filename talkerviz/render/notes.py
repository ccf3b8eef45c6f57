"""Notes on the limits of a trace's numbers, and the headline of frame latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from talkerviz.analysis.frame_latency import FrameSummary
from talkerviz.analysis.idle_time import idle_time
from talkerviz.render.text import factor_text, size_text, time_text
from talkerviz.trace import TraceRecord
from talkerviz.trace.event_log import DEVICE_CLOCKS
from talkerviz.trace.labels import format_count

_MAX_DRIFT_NS = 1_000_000_000  # no clock drifts by more during a recording
_MIN_OUTSIDE_SHARE = 0.05  # of the time since the first call; less is not worth a line
_MIN_COLLECTED_SHARE = 0.001  # of the calls' time; less is not worth a line


def notes_on(trace: TraceRecord) -> list[str]:
    """List notes on a trace's numbers: what they leave out and how they were measured, a line each."""
    outside = idle_time(trace)
    notes = []
    if outside is not None and outside.idle_ns > _MIN_OUTSIDE_SHARE * outside.span_ns:
        notes.append(
            f"Of the {time_text(outside.span_ns)} since the first call began {time_text(outside.idle_ns)} are in no row"
            ": backward, optimizers, sampling and all else that runs outside these modules."
        )
    collected = trace.collections_inside()["host_ns"]
    if len(collected) and collected.sum() >= _MIN_COLLECTED_SHARE * trace.calls["host_self_ns"].sum():
        notes.append(
            f"Python's garbage collector ran {format_count(len(collected), 'time')} inside these calls and took"
            f" {time_text(int(collected.sum()))}, {time_text(int(collected.max()))} at most, in no module's self time."
        )
    return [*notes, *_on_facts(trace.facts)]


def _on_facts(facts: Mapping[str, Any]) -> list[str]:
    notes = []
    if facts.get("weights_note"):
        notes.append(f"{facts['weights_note'][0].upper()}{facts['weights_note'][1:]}.")
    if facts.get("warmup_ns"):
        times = ", ".join(time_text(ns) for ns in facts["warmup_ns"])
        notes.append(f"Warmed up before: {times}, in none of these numbers.")
    if facts.get("repeat"):
        notes.append(
            f"{facts['repeat']:,} runs: times and calls are of all together; `show --runs` tells how they differ."
        )
    if facts.get("repeat") and facts.get("cut_short"):
        cut = ", ".join(map(str, facts["cut_short"]))
        notes.append(f"Cut short: run {cut}; statistics over runs leave it out.")
    if facts.get("processes"):
        notes += _on_ranks(facts["processes"], facts["clocks"])
    if facts.get("own_cost_ns"):
        cost = time_text(facts["own_cost_ns"])
        notes.append(
            f"Recording took {cost} a call, in no call's time."
            if not {"processes", "process"} & {*facts} and facts.get("clock") not in DEVICE_CLOCKS
            else f"Recording took {cost} a call, in its caller's self time: others went on, or waited, meanwhile."
        )
    notes += _on_missing_calls(facts)
    if facts.get("host_peak_bytes") and "processes" not in facts:
        weights, peak = size_text(facts["weights_bytes"]), size_text(facts["host_peak_bytes"])
        notes.append(f"The weights are {weights}; the process held {peak} of host memory at most until the run ended.")
    by_why: dict[str, list[str]] = {}
    for path, why in facts.get("one_call", {}).items():
        by_why.setdefault(why, []).append(path)
    for why, paths in by_why.items():
        others = f" and {len(paths) - 1} more are" if len(paths) > 1 else " is"
        notes.append(f"{paths[0]}{others} {why}: what runs inside is one call.")
    if facts.get("graph_replays"):
        notes.append(f"{facts['graph_replays']:,} replays of CUDA graphs: each began when the one before was over.")
    if facts.get("graph_replays_whole"):
        notes.append(
            f"All calls of {facts['graph_replays_whole']:,} of these replays have times, and of the others the outer"
            " ones; sums of the rest are estimates. `--clock cuda-all` times every call and costs more."
        )
    if facts.get("graph_replays_unread"):
        replays = format_count(facts["graph_replays_unread"], "replay")
        notes.append(f"{replays} of CUDA graphs in no row: another graph was captured before they could be read.")
    if facts.get("graph_stream_changes"):
        changes = format_count(facts["graph_stream_changes"], "replay")
        notes.append(
            f"{changes} of a CUDA graph on another stream than its replay before: they took turns, which they need not"
            " unless they are recorded."
        )
    if sampling := facts.get("device_sampling"):
        notes.append(
            f"Device times of all calls are of one frame in {sampling['every']:,}, {len(sampling['frames']):,} in all,"
            f" and in other frames of the outer {format_count(sampling['levels'], 'level')} alone; sums of the others"
            " are estimates. `--clock cuda-all` times every call and costs more."
        )
    if several := facts.get("several_devices"):
        more = f" and {several['calls'] - 1:,} more" if several["calls"] > 1 else ""
        notes.append(
            f"No device time for a call of {several['modules'][0]}{more}: its weights begin and end on different"
            " devices."
        )
    if facts.get("device_untimed"):
        notes.append(f"No device times: {facts['device_untimed']}")
    if facts.get("graphs_untimed"):
        notes.append(f"Calls inside CUDA graphs have no times here: {facts['graphs_untimed']}")
    if facts.get("unmeasured"):
        notes.append(f"The device could not be read: {facts['unmeasured']}")
    if facts.get("unwatched_calls"):
        calls = facts["unwatched_calls"]
        notes.append(
            f"Calls of other threads, {calls:,} of them, were timed alone: neither they nor the calls that they ran in"
            " have costs, and arrows do not go through them."
        )
    if facts.get("unknown_operators"):
        counts, places = facts["unknown_operators"], facts.get("unknown_operators_in", {})
        names = ", ".join(
            f"{format_count(count, 'call')} of {name}{_module_text(places.get(name, ()))}"
            for name, count in counts.items()
        )
        notes.append(f"FLOP are at least those in the table; not counted, since their arithmetic is unknown: {names}")
    if facts.get("unfinished"):
        notes.append("The run was killed: the calls it had written away until then.")
    return notes


def _on_missing_calls(facts: Mapping[str, Any]) -> list[str]:
    """List notes on calls that are in no row."""
    notes = []
    if strange := facts.get("strange_calls"):
        classes = ", ".join(strange["classes"]) or "of unknown class"
        notes.append(
            f"{format_count(strange['calls'], 'call')} of modules that the model does not hold ({classes}) are in no"
            " row:"
            " torch does not know what is kept in plain lists or made on the fly."
        )
    if facts.get("joined_modules"):
        notes.append(f"{format_count(facts['joined_modules'], 'module')} joined the model while it was recorded.")
    if calls := facts.get("calls_of_other_threads"):
        notes.append(
            f"{format_count(calls, 'call')} of other threads and tasks are in no row: what a thread other than the main"
            " one"
            ' records, and what is recorded with only="here", is its own.'
        )
    if processes := facts.get("processes_begun"):
        # Only a run that follows its processes notes its own number.
        followed = "pid" in facts.get("process", {}) or "pid" in facts.get("processes", [{}])[0]
        where = "Those that called a module have traces of their own" if followed else "What they called is in no row"
        notes.append(f"Processes that began meanwhile: {processes:,}. {where}.")
    return notes


def _module_text(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    return f" in {paths[0]}{more}" if paths else ""


def _on_ranks(processes: Sequence[Mapping[str, Any]], clocks: Mapping[str, Any]) -> list[str]:
    there, size = len(processes), processes[0]["world_size"]
    of = f"{there:,} ranks" if there == size else f"{there:,} of {size:,} ranks"
    notes = [f"{of}: times and calls are of all together; `show --ranks` and `--across rank` tell them apart."]
    known = [ns for ns in clocks["error_ns"] if ns is not None]
    if len(known) < there:
        notes.append("How the clocks of some ranks stand to the others' is known from their hosts' wall clocks alone.")
    elif clocks["error_ns"] and max(known) > 0:
        told = " and ".join(clocks["by"])
        notes.append(f"Clocks of different hosts are put together to within {time_text(max(known))}, by {told}.")
    # Each of two clocks may be off by the error.
    if clocks["early_ns"] > _MAX_DRIFT_NS:
        notes.append(
            f"Collectives contradict the clocks of their hosts by {time_text(clocks['early_ns'])}: they do not belong"
            " together."
        )
    elif clocks["early_ns"] > 2 * max(known, default=0):
        notes.append(f"Clocks drifted: by up to {time_text(clocks['early_ns'])} a collective is over too early.")
    if clocks.get("mispaired"):
        notes.append(
            "Over on one rank before they begin on another of its host:"
            f" {format_count(clocks['mispaired'], 'collective')}, which do not belong together."
        )
    return notes


def headline(summary: FrameSummary) -> str:
    """Format the time to the first frame, the latency of later ones and the real-time factor, as far as known."""
    frames = format_count(summary.frames, "frame")
    parts = [f"{frames} of {summary.runs:,} runs" if summary.runs > 1 else frames]
    if summary.first_ns is not None:
        parts[0] += f": the first after {time_text(summary.first_ns)}"
    if summary.mean_ns is not None:
        spread = {"p50": summary.p50_ns, "p95": summary.p95_ns, "p99": summary.p99_ns, "jitter": summary.jitter_ns}
        known = ", ".join(f"{name} {time_text(ns)}" for name, ns in spread.items() if ns is not None)
        further = f"{time_text(summary.mean_ns)} each ({known})"
        parts[0] += f", then {further}" if summary.first_ns is not None else f": {further}"
    if summary.real_time_factor is not None:
        parts += [f"{factor_text(summary.real_time_factor)} real time, {summary.codes_per_second:,.1f} codes/s"]
    return "; ".join(parts)
