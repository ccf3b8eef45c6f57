"""Survey of all architectures of transformers: each is built small, run, traced, drawn and reported.

`python benchmarks/zoo.py` goes through all model types that an Auto class builds, two classes of each: the plain model,
and what `talkerviz trace` would build, which generates where anything of that type does. Each runs in a process of its
own, within limits of time and memory. Results are kept in `reports/zoo/zoo.jsonl` as they come: what is there is not
run again. Then `reports/zoo/zoo.md` is written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import shrink
import torch
import transformers
from torch import Tensor, nn

import talkerviz as tv
from talkerviz.render.registry import render
from talkerviz.report.writer import write_report
from talkerviz.targets.huggingface.from_config import build, config_from, model_class, one_line
from talkerviz.targets.huggingface.quiet_transformers import quiet
from talkerviz.targets.huggingface.runner import Runner, runner

FOLDER = Path(__file__).parent.parent / "reports" / "zoo"
OWN = ("config", "build", "run")
STAGES = (*OWN, "trace", "equal", "flow", "draw", "report")
TOKENS = 4
MOST_PARAMETERS = 800e6
PRELOADED = [
    "talkerviz.targets.huggingface.runner",
    "talkerviz.report.writer",
    "transformers.modeling_utils",
    "transformers.generation",
]
EXTRAS = ("scipy", "pillow", "timm", "torchvision", "torchaudio", "natten", "detectron2")

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("types", nargs="*", help="model types (default: all)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the results and the table")
    parser.add_argument("--limit", type=float, default=90, help="seconds an architecture")
    parser.add_argument("--memory", type=float, default=10, help="GiB of memory an architecture")
    parser.add_argument("--again", action="store_true", help="repeat failed architectures")
    go_through(**vars(parser.parse_args()))


def go_through(types: list[str], folder: Path, limit: float, memory: float, again: bool = False) -> None:
    """Run the architectures without a result, store the results, and write the table."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "zoo.jsonl"
    results = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    if again:
        results = [one for one in results if one["stage"] == "ok" or (types and one["type"] not in types)]
        kept.write_text("".join(json.dumps(result) + "\n" for result in results))
    done = {(result["type"], result["class"]) for result in results}
    commit = _commit()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with kept.open("a") as file:
        for kind, name in architectures(types):
            if (kind, name) in done:
                continue
            result = {"type": kind, "class": name, **_limited(context, kind, name, limit, memory), "commit": commit}
            results.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(kind, name, result["stage"], result.get("why", ""), f"{result['seconds']} s", flush=True)
    results.sort(key=lambda result: (result["type"].lower(), result["class"]))
    (folder / "zoo.md").write_text(published(results))


def architectures(types: list[str]) -> Iterator[tuple[str, str]]:
    """Yield model types with the names of their classes to run."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for kind in types or sorted(CONFIG_MAPPING):
        plain = MODEL_MAPPING_NAMES.get(kind, [])
        names = [plain] if isinstance(plain, str) else list(plain)[:1]
        try:
            with quiet():
                names.append(model_class(CONFIG_MAPPING[kind](**shrink.MADE_WITH.get(kind, {}))).__name__)
        except ValueError as error:
            if types and not names:
                raise SystemExit(f"{kind}: {error}") from error
        except Exception:  # the default config cannot be built: reported for the plain model
            names = names or [kind]
        yield from ((kind, name) for name in dict.fromkeys(names))


def _commit() -> str:
    """Return the checked-out commit, marked if the code differs from it."""
    root = Path(__file__).parent.parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    if head.returncode:
        return f"version {tv.__version__}"
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "talkerviz", "benchmarks"], cwd=root)
    return head.stdout.strip() + (" with changes" if changed.returncode else "")


def _limited(context: Any, kind: str, name: str, seconds: float, gibibytes: float) -> Result:
    """Run an architecture in a child process, within limits of time and memory."""
    began = time.monotonic()
    ours, theirs = context.Pipe()
    process = context.Process(target=_alone, args=(theirs, kind, name, gibibytes))
    process.start()
    theirs.close()
    result: Result = {"stage": "config"}
    told = False
    try:
        while not told and ours.poll(max(0.0, seconds - (time.monotonic() - began))):
            news = ours.recv()
            told = news.pop("last")
            result |= news
        if not told:
            result["why"] = f"took more than {seconds:g} s"
    except EOFError:
        process.join()
        result["why"] = f"the process ended with {process.exitcode}"
    if process.is_alive():
        process.kill()
    process.join()
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def _alone(parent: Connection, kind: str, name: str, gibibytes: float) -> None:
    limit = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    torch.set_num_threads(1)
    known: Result = {"stage": "config"}

    def reached(stage: str, **news: Any) -> None:
        known.update(stage=stage, **news)
        parent.send({**known, "last": False})

    try:
        with quiet():
            _go(kind, name, reached)
        known["stage"] = "ok"
    except Exception as error:
        known["why"] = _short(error)
    parent.send({**known, "last": True})


def _go(kind: str, name: str, reached: Any) -> None:
    model, runs = _own(kind, name, reached)
    parameters = sum(one.numel() for one in model.parameters())
    reached("run", parameters=parameters, generates=runs.generates, inputs=runs.shapes())
    untraced = runs.run()
    reached("trace")
    with tv.recording(model) as recorded:
        traced = runs.run()
    trace = recorded.trace
    phases = list(dict.fromkeys(trace.calls["phase"].astype(str)))
    reached("equal", calls=len(trace.calls), phases=phases)
    if not same(untraced, traced):
        raise AssertionError("what it returns is not what it returns untraced")
    reached("flow")
    flow = tv.record(model, runs.run, measure="flow")
    trace = tv.join(trace, flow)
    reached("draw", edges=len(trace.flow.edges) if trace.flow is not None else 0)
    for drawn in ("mermaid", "dot"):
        render(trace, drawn)
    reached("report")
    with tempfile.TemporaryDirectory() as folder:
        if notes := write_report(trace, Path(folder)):
            raise AssertionError("; ".join(notes))


def _own(kind: str, name: str, reached: Any) -> tuple[nn.Module, Runner]:
    """Build the smallest model that works, and its runner."""
    failures: list[tuple[str, str]] = []

    def failed(stage: str, error: Exception) -> None:
        failures.append((stage, _short(error)))

    try:
        fields = shrink.default_fields(kind)
    except Exception as error:
        reached("config")
        raise ValueError(one_line(error)) from error
    seen: Counter[tuple[int, str]] = Counter()
    for by, layers in shrink.TRIES:
        if failures and seen[layers, failures[-1][1]] >= 2:
            continue  # no width will help
        try:
            config = config_from({**shrink.shrunk(fields, by, layers), "architectures": [name]}, kind)
        except Exception as error:
            failed("config", error)
            continue
        count = _parameters(name, config)
        if count is not None and count > MOST_PARAMETERS:
            failures.append(("build", ""))
            continue
        stage = "build"
        try:
            model = build(config_from(config.to_dict() | {"architectures": [name]}, kind)).model
            stage = "run"
            reached("run")
            return model, runner(model, TOKENS, 0)
        except Exception as error:
            failed(stage, error)
            seen[layers, failures[-1][1]] += 1
    told = [failure for failure in failures if failure[1]]
    stage, why = max(told, key=lambda failure: OWN.index(failure[0]), default=("build", "too large, however shrunk"))
    reached(stage)
    raise ValueError(why)


def _parameters(name: str, config: Any) -> int | None:
    """Count the parameters of a model built on the meta device; None if it cannot be built there."""
    try:
        with torch.device("meta"):
            return sum(one.numel() for one in getattr(transformers, name)._from_config(config).parameters())
    except Exception:
        return None


def same(one: Any, two: Any) -> bool:
    """Return whether two runs returned equal values, bit for bit."""
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    if not isinstance(one, Tensor):
        return True  # a cache, or nothing
    try:
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    except AssertionError:
        return False
    return True


def _short(error: BaseException) -> str:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return re.sub(r" from '/[^']*'", "", one_line(error))[:240]


def published(results: list[Result]) -> str:
    """Format the table of results."""
    own = [result for result in results if result["stage"] not in OWN]
    works = [result for result in own if result["stage"] == "ok"]
    generate = sum(1 for result in own if result.get("generates"))
    types = len({result["type"] for result in results})
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    commits = ", ".join(sorted({result["commit"] for result in results}))
    there = {name: _version(name) for name in EXTRAS}
    present = ", ".join(f"{name} {version}" for name, version in there.items() if version)
    absent = ", ".join(name for name, version in there.items() if not version)
    lines = [
        "# What works with every architecture of transformers",
        "",
        f"{len(results):,} classes of {types:,} model types were tried. {len(own):,} ({len(own) / len(results):.1%})"
        f" could be built small from their default config and ran on inputs that talkerviz made, {generate:,} of them"
        f" by generating {TOKENS} tokens. **Of those, {len(works):,} ({len(works) / max(len(own), 1):.1%}) were traced"
        " with equal results, their tensors followed, drawn as Mermaid and DOT, and reported.**",
        "",
        f"{versions}, Python {platform.python_version()}, on a CPU; {f'with {present}, ' if present else ''}without"
        f" {absent}. Weights are random. What a default config lacks, or has at odds with itself, is set in `shrink.py`"
        f" for {len(shrink.HINTS)} types. Two classes a type: the plain model, and what `talkerviz trace` builds. Types"
        " that no Auto class builds are parts of others and not listed. Made by `python benchmarks/zoo.py` of talkerviz"
        f" {commits}.",
        "",
        "## What does not work",
        "",
        *_rows([result for result in own if result["stage"] != "ok"], ("stage", "why")),
        "## What did not run by itself",
        "",
        "Nothing of ours was tried on these.",
        "",
    ]
    others: dict[str, list[Result]] = {}
    for result in results:
        if result["stage"] in OWN:
            others.setdefault(_reason(result), []).append(result)
    for reason, of_reason in sorted(others.items(), key=lambda pair: -len(pair[1])):
        lines += [f"### {reason}: {len(of_reason):,}", "", *_rows(of_reason, ("why",))]
    return "\n".join([*lines, "## What works", "", *_rows(works, ("calls", "phases", "inputs"))])


def _reason(result: Result) -> str:
    if package := re.search(r"requires the (\w+) library", result["why"]):
        return f"Needs {package[1]}, which is not installed"
    if result["why"].startswith("took more"):
        return "Not built and run within the time"
    built = {"config": "No small config was made of the default one", "build": "Not built from a config alone"}
    return built.get(result["stage"], "No inputs that it runs on")


def _rows(results: list[Result], columns: tuple[str, ...]) -> list[str]:
    heads = ("type", "class", *columns)
    if not results:
        return ["None.", ""]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---:' if one == 'calls' else '---' for one in heads)} |"]
    return [*lines, *(f"| {' | '.join(_cell(result[head]) for head in heads)} |" for result in results), ""]


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        value = [f"{name} {'x'.join(map(str, size))}" for name, size in value.items() if not name.endswith("_mask")]
    text = ", ".join(value) if isinstance(value, list) else re.sub(r"( library) but it was not found.*", r"\1", value)
    return (text if len(text) <= 120 else f"{text[:119]}…").replace("|", "\\|").replace("<", "&lt;")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
