"""Talkers of transformers side by side: rates, passes, parameters, bytes, FLOP and time a frame, and a chart of each.

    python benchmarks/talker_families.py [--families csm ...] [--full csm ...] [--frames 8] [--repeat 3]
        [-o reports/talker-families]

Traces each family's preset `lite` with `talkerviz trace talker --family`, writes its charts and a table, and times the
preset `full` of those named with `--full` in bfloat16, which needs twice as many bytes of memory as parameters. Takes
about five minutes on a core for `lite`.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import nn

import talkerviz as tv
from talkerviz.recorder.instruments.device_benchmark import device_name
from talkerviz.talker import build_code2wav, build_talker, code2wav_config, preset
from talkerviz.targets import FAMILIES
from talkerviz.targets.families.target import build_preset

OURS = "qwen3-omni"
NAMES = (OURS, *FAMILIES)
_BYTES_A_WEIGHT = 2  # bfloat16, in which the checkpoints are published


@dataclass(frozen=True)
class Subject:
    """A family as it is measured.

    Attributes:
        name: value of `--family`.
        checkpoint: published checkpoint.
        codec: what turns codes into sound.
        frame_rate_hz: frames in a second of speech.
        codes: codes of a frame.
        passes: passes a frame by path of their module in the trace.
        models: full-size talker and codec on the meta device, by path of their root in the trace; the codec's begins
            the path in `codec_path`.
        codec_path: path of the codec in the trace; empty if its trace is another.
        experts: experts that a token is sent to.
    """

    name: str
    checkpoint: str
    codec: str
    frame_rate_hz: float
    codes: int
    passes: Mapping[str, float]
    models: Mapping[str, nn.Module]
    codec_path: str
    experts: int = 1


def subject(name: str) -> Subject:
    """Return a family with its full-size model on the meta device."""
    if name == OURS:
        config = preset("full")
        models = {
            "talker": build_talker(config, "transformers", "meta", torch.bfloat16),
            "code2wav": build_code2wav(code2wav_config("full"), "meta", torch.bfloat16),
        }
        passes = {"talker": 1, "talker.code_predictor": 15}
        checkpoint = "Qwen/Qwen3-Omni-30B-A3B-Instruct"
        experts = config.text.num_experts_per_tok
        return Subject(name, checkpoint, "code2wav", 12.5, config.num_code_groups, passes, models, "code2wav", experts)
    family = FAMILIES[name]
    model = build_preset(family, "full", "meta", torch.bfloat16)
    passes = {f"model.{path}": count for path, count in family.passes.items()}
    codec_path = f"model.{family.codec_path}"
    rate, codes = family.frame_rate_hz, family.codes_a_frame
    return Subject(name, family.checkpoint, family.codec, rate, codes, passes, {"model": model}, codec_path)


def parameters(subject: Subject) -> tuple[int, int]:
    """Return the parameters of the talker and of the codec."""
    codec = total = 0
    for root, model in subject.models.items():
        for path, parameter in model.named_parameters(prefix=root):  # tied ones once
            total += parameter.numel()
            codec += parameter.numel() if path.startswith(f"{subject.codec_path}.") else 0
    return total - codec, codec


def trace_of(name: str, size: str, frames: int, repeat: int, folder: Path, cost: bool) -> tuple[tv.Trace, tv.Trace]:
    """Trace a family by the command line, and return the traces of its talker and of its codec, which may be one."""

    def run(target: str, *options: str) -> tv.Trace:
        file = folder / f"{name}-{target}-{size}.parquet"
        common = ["--preset", size, "--device", "cpu", "--frames", str(frames), "--repeat", str(repeat)]
        measures = ["--cost"] if cost else ["--no-flow"]
        command = ["trace", target, *common, "--warmup", str(int(cost)), *measures, *options, "-o", str(file)]
        print("talkerviz", *command, file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "talkerviz", *command], check=True, stdout=subprocess.DEVNULL)
        return tv.Trace.load(file)

    if name == OURS:
        return run("talker", "--impl", "transformers"), run("code2wav")
    trace = run("talker", "--family", name)
    return trace, trace


@dataclass(frozen=True)
class Frame:
    """Means of a frame after the first.

    Attributes:
        talker_ms: time in the talker's calls, in milliseconds.
        codec_ms: time in the codec's calls, in milliseconds, of the whole run over its frames.
        flop: FLOP of the talker's calls as the recorder counts them; NaN if it did not.
        counts: calls a frame, by path and the positions that go into the call.
    """

    talker_ms: float
    codec_ms: float
    flop: float
    counts: Mapping[tuple[str, int], float]


def steady_frame(subject: Subject, talker: tv.Trace, codec: tv.Trace, frames: int) -> Frame:
    """Compute the means of a frame from those of its passes, without the passes of a prompt.

    A pass's time is the least over the runs of the mean over a run's passes, since a busy machine only adds to it.
    """
    calls = talker.calls.assign(positions=talker.calls["inputs"].map(_positions))
    talker_ms = flop = 0.0
    counts: dict[tuple[str, int], float] = {}
    for path, passes_a_frame in subject.passes.items():
        phases = calls.loc[calls["path"] == path, "phase"].unique()
        of_phase = calls[calls["phase"].isin([phase for phase in phases if not phase.endswith("prefill")])]
        passes = (of_phase["path"] == path).groupby(of_phase["run"]).sum()
        times = of_phase.groupby("run")["host_self_ns"].sum() / passes
        talker_ms += passes_a_frame * float(times.min()) / 1e6
        outermost = of_phase[of_phase["parent"].isna()]
        flop += passes_a_frame * outermost["flops"].astype(float).sum(min_count=1) / int(passes.sum())
        for key, number in of_phase.groupby(["path", "positions"], observed=True).size().items():
            counts[key] = counts.get(key, 0) + passes_a_frame * number / int(passes.sum())
    of_codec = codec.calls[codec.calls["path"].astype(str).str.startswith(subject.codec_path)]
    of_codec = of_codec[of_codec["phase"] != "encode"]
    # Moshi decodes the frames of its prompt too, all but one of the 31 tokens.
    sound_frames = frames + (30 if subject.name == "moshi" else 0)
    codec_ms = float(of_codec.groupby("run")["host_self_ns"].sum().min()) / 1e6 / sound_frames
    return Frame(talker_ms, codec_ms, flop, counts)


def _positions(inputs: Sequence[tuple[object, Sequence[int], str]]) -> int:
    """Return the rows of a call's first tensor: ids, or vectors of features."""
    if not inputs:
        return 1
    _, shape, dtype, *_ = inputs[0]
    is_features = "float" in dtype and len(shape) > 1
    return math.prod(shape[:-1] if is_features else shape)


def weights_of_a_frame(models: Mapping[str, nn.Module], frame: Frame, experts: int) -> tuple[float, float]:
    """Return the weights that a frame reads, in elements, and the FLOP of multiplying by them.

    Of stacked weights one is used by a call, or for experts as many as a token is sent to. Attention to the cache is
    not counted.
    """
    modules = {path: module for root, model in models.items() for path, module in model.named_modules(prefix=root)}
    read = flop = 0.0
    for (path, positions), number in frame.counts.items():
        module = modules[path]
        for parameter in module.parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                read += number * positions * parameter.shape[-1]
                continue
            is_stack = parameter.dim() == 3
            is_experts = is_stack and path.endswith("experts")
            used = parameter.numel() // (len(parameter) if is_stack else 1) * (experts if is_experts else 1)
            read += number * used
            flop += number * 2 * used * positions if parameter.dim() > 1 else 0
    return read, flop


def measure(name: str, options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the table and the row that a family has in it, and write its chart."""
    family, frames = subject(name), options.frames
    talker, codec = trace_of(name, "lite", frames, options.repeat, folder, name not in options.quick)
    lite = steady_frame(family, talker, codec, frames)
    (options.output / f"{name}.svg").write_text(str(talker.render("svg", max_nodes=40)), encoding="utf-8")
    (options.output / f"{name}.mmd").write_text(str(talker.render("mermaid", max_nodes=40)), encoding="utf-8")
    of_talker, of_codec = parameters(family)
    read, flop = weights_of_a_frame(family.models, lite, family.experts)
    passes, rate = sum(family.passes.values()), family.frame_rate_hz
    yield (
        "sizes",
        f"| {name} | {rate:.4g} | {family.codes} | {rate * family.codes:,.0f} | {passes:.3g} | {rate * passes:,.0f} | "
        f"{of_talker / 1e6:,.0f} M | {of_codec / 1e6:,.0f} M | {read * _BYTES_A_WEIGHT / 1e6:,.0f} MB | "
        f"{flop / 1e9:.3g} G | {read * _BYTES_A_WEIGHT * rate / 1e9:.3g} GB/s | {flop * rate / 1e9:,.0f} GFLOP/s |",
    )
    yield "times", _time_row(family, "lite", "float32", lite)
    if name in options.full:
        whole = steady_frame(family, *trace_of(name, "full", 3, 1, folder, cost=False), 3)
        yield "times", _time_row(family, "full", "bfloat16", whole)
    if name not in options.quick:
        # Two experts of the preset `lite` take each token.
        yield "check", f"{name} {weights_of_a_frame(lite_models(name), lite, 2)[1] / lite.flop:.2f}"


def lite_models(name: str) -> Mapping[str, nn.Module]:
    """Return the preset `lite` on the meta device, by its root's path."""
    if name == OURS:
        return {"talker": build_talker(preset("lite"), "transformers", "meta")}
    return {"model": build_preset(FAMILIES[name], "lite", "meta", torch.float32)}


def _time_row(family: Subject, size: str, dtype: str, frame: Frame) -> str:
    both = frame.talker_ms + frame.codec_ms
    return (
        f"| {family.name} | `{size}` | {dtype} | {1e3 / family.frame_rate_hz:.1f} ms | {frame.talker_ms:,.1f} ms | "
        f"{frame.codec_ms:,.1f} ms | {1e3 / family.frame_rate_hz / both:.2f}x |"
    )


def page(rows: Mapping[str, Sequence[str]], options: argparse.Namespace) -> str:
    """Return the Markdown page of the tables and charts."""
    sizes = (
        *("family", "frames/s", "codes a frame", "codes/s", "passes a frame", "passes/s", "talker", "codec"),
        *("read a frame", "FLOP a frame", "read for real time", "FLOP for real time"),
    )
    times = ("family", "preset", "dtype", "speech a frame", "talker", "codec", "real time")
    subjects = [subject(name) for name in options.families]
    return "\n".join(
        [
            "# Talkers side by side",
            "",
            f"{date.today()}, torch {torch.__version__}, {device_name('cpu')}, {torch.get_num_threads()} threads. "
            "Random weights; made by `python benchmarks/talker_families.py`.",
            "",
            "## At published sizes",
            "",
            *_table(sizes, rows["sizes"], 1),
            "",
            *(f"- {each.name}: {each.checkpoint}, {each.codec}" for each in subjects),
            "",
            "A pass is a call of the model or of its depth decoder; a frame is one of the codec. What is read are "
            "weights in bfloat16, those of a depth decoder again in each of its passes, as each needs the code "
            "before it; attention to the cache and the codec are not in it, nor in FLOP, which are two for each "
            "weight and position. Dia's passes are of two rows, with the text and without. Bark's are 0.67 of its "
            "semantic model, 2 of its coarse model and 6 of its fine model for 512 frames, each of 1,024 positions. "
            f"Over the FLOP that the recorder counts for `lite`, those from weights are: {', '.join(rows['check'])}; "
            "the rest is attention.",
            "",
            "## Times",
            "",
            *_table(times, rows["times"], 3),
            "",
            f"Time in the modules of a frame, the least of {options.repeat} runs of {options.frames} frames (`full`: "
            "one run of 3), without the prompt's pass and without sampling between passes. The codec's is that of "
            "one decoding of the run's sound over its frames: that of token2wav, whose diffusion steps go over the "
            "reference voice too, is spread over few. The time of Bark's fine model is spread over 512 frames.",
            "",
            "## Charts",
            "",
            *([f"Arrows are the order of calls for {', '.join(options.quick)}.", ""] if options.quick else []),
            *(line for name in options.families for line in (f"### {name}", "", f"![{name}]({name}.svg)", "")),
        ]
    )


def _table(heads: Sequence[str], rows: Sequence[str], texts: int) -> list[str]:
    lines = ["---"] * texts + ["---:"] * (len(heads) - texts)
    return ["| " + " | ".join(heads) + " |", "| " + " | ".join(lines) + " |", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--full", nargs="*", default=(), choices=NAMES)
    parser.add_argument(
        "--quick", nargs="*", default=(), choices=NAMES, help="without a warm-up, the flow of tensors and counted FLOP"
    )
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/talker-families"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = {"sizes": [], "times": [], "check": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.families:
            for table, row in measure(name, options, Path(folder)):
                print(row, flush=True)
                rows[table].append(row)
            (options.output / "README.md").write_text(page(rows, options), encoding="utf-8")


if __name__ == "__main__":
    main()
