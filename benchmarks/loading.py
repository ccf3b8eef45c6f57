"""Memory to load the talker's checkpoint: peak resident set against the size of the weights.

    python benchmarks/loading.py [--preset full] [-o reports/benchmarks/loading.md]

A checkpoint of the preset, with random weights, is written to a temporary folder: shards of 1 GB, experts one by one,
in bfloat16, as the published one is. Each loader runs in a process of its own, which prints its `ru_maxrss`.
`full` needs 7 GB of disk, and 14 GB of memory for the loader that keeps two copies.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from importlib import resources
from pathlib import Path

SHARD_BYTES = 1_000_000_000
WAYS = {
    "nothing": "the imports alone",
    "native": "talkerviz, `--impl native`",
    "transformers": "talkerviz, `--impl transformers`",
    "cast": "talkerviz, `--impl native`, cast to float16 on the way",
    "at once": "`safetensors.torch.load_file` of all shards, then `load_state_dict`",
}


def write(preset_name: str, folder: Path) -> None:
    """Write the checkpoint and print the size of its weights in bytes."""
    import torch
    from safetensors.torch import save_file

    from talkerviz.talker import build_talker, preset
    from talkerviz.talker.files.checkpoint import MODEL_TYPE

    config = json.loads(resources.files("talkerviz.talker.model").joinpath("qwen3_omni_talker_config.json").read_text())
    text = preset(preset_name).text
    # `lite` differs from `full` in these fields.
    for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size"):
        config["talker_config"]["text_config"][name] = getattr(text, name)
    (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPE, **config}))
    state = build_talker(preset(preset_name), dtype=torch.bfloat16).state_dict()
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, weight in state.items():
        if sum(other.nbytes for other in shards[-1].values()) + weight.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][f"talker.{name}"] = weight
    index = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        # Copies, since safetensors refuses views of one storage.
        save_file({name: weight.clone() for name, weight in shard.items()}, folder / file)
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    print(sum(weight.nbytes for weight in state.values()))


def load(way: str, folder: Path) -> None:
    """Load the checkpoint with one of the loaders and print the peak resident set in bytes."""
    import torch

    # All loaders import the same modules.
    from safetensors.torch import load_file
    from transformers import Qwen3OmniMoeTalkerForConditionalGeneration  # noqa: F401

    from talkerviz.talker import find_module, load_talker, read_talker_config
    from talkerviz.talker.model.talker import TalkerForConditionalGeneration

    if way == "at once":
        with torch.device("meta"):
            talker = TalkerForConditionalGeneration(read_talker_config(folder))
        talker.to(torch.bfloat16).to_empty(device="cpu")
        state = {}
        for file in folder.glob("*.safetensors"):
            state |= load_file(file)
        talker.load_state_dict({name.removeprefix("talker."): weight for name, weight in state.items()})
    elif way != "nothing":
        load_talker(
            read_talker_config(folder),
            find_module(folder, "talker."),
            "transformers" if way == "transformers" else "native",
            dtype=torch.float16 if way == "cast" else None,
        )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def in_a_process(*args: object) -> int:
    command = [sys.executable, __file__, "--child", *map(str, args)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="full")
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/benchmarks/loading.md"))
    parser.add_argument("--child", nargs=3)
    options = parser.parse_args()
    if options.child:
        job, what, folder = options.child
        jobs: dict[str, Callable[[str, Path], None]] = {"write": write, "load": load}
        jobs[job](what, Path(folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = in_a_process("write", options.preset, folder)
        shards = len(list(Path(folder).glob("*.safetensors")))
        peaks = {way: in_a_process("load", way, folder) for way in WAYS}
    import torch

    floor = peaks["nothing"]
    lines = [
        "# Memory while a checkpoint is loaded",
        "",
        f"{date.today()}, torch {torch.__version__}, Python {platform.python_version()}, Linux. A checkpoint of "
        f"`{options.preset}` in bfloat16, {weights:,} bytes of weights in {shards} files, written with random weights "
        "and loaded on the CPU. Peak resident set (`ru_maxrss`) of a process that does nothing else; made by "
        "`python benchmarks/loading.py`.",
        "",
        "| what it does | peak, MB | times the weights | without the imports |",
        "| --- | ---: | ---: | ---: |",
    ]
    for way, what in WAYS.items():
        peak = peaks[way]
        lines.append(f"| {what} | {peak / 1e6:,.0f} | {peak / weights:.2f} | {(peak - floor) / weights:.2f} |")
    lines += [
        "",
        "talkerviz builds the talker without storage, allocates it in its final dtype where it will run, and reads "
        "each tensor, 16 MiB at a time, into the parameter's own memory. Files are read and never mapped: mapped pages "
        "count as the process's, while the system's page cache gives way when memory is short. A cast, and the way to "
        "another device, goes through one buffer of that size.",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
