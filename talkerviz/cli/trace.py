"""`talkerviz trace`: a subcommand per kind of target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from talkerviz.cli.app import app, new_app, with_option_groups
from talkerviz.cli.model_options import (
    INPUT_PANEL,
    MODEL_PANEL,
    Checkpoint,
    Compile,
    ComputeDevice,
    Fused,
    Graphs,
    Inputs,
    Preset,
    RunDevice,
    Seed,
    Speaker,
    WeightFormat,
    WeightsDtype,
    compile_choice,
    device_name,
    option_name,
    torch_dtype,
)
from talkerviz.cli.streams import print_message
from talkerviz.cli.trace_options import OUTPUT_PANEL, RecordingOptions

# click's own class, or the copy of it that newer versions of typer bring.
Context = Any
Command = Any

_HELP_OPTIONS = ("-h", "--help")
_TARGETS = "talker, code2wav, a folder with a config.json, or package.module:function"


Impl = Literal["native", "transformers"]
"""Implementation of the talker."""

FamilyName = Literal["qwen3-omni", "csm", "dia", "moshi", "qwen2.5-omni", "bark"]
"""Family of the talker; all but the first are transformers' own models."""


class _TargetGroup(TyperGroup):
    """Group that takes the talker for a missing target, and short forms of `model DIR` and `call FUNCTION`."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Put the subcommand first, then parse."""
        # An empty line that is completed lists the subcommands.
        shows_group = args[0] in _HELP_OPTIONS if args else ctx.resilient_parsing
        return super().parse_args(ctx, args if shows_group else self._with_subcommand(args, ctx.resilient_parsing))

    def shell_complete(self, ctx: Context, incomplete: str) -> list[Any]:
        """Complete options as the talker's, of which the target may be left out."""
        talker = self.get_command(ctx, "talker")
        if talker is not None and incomplete.startswith("-"):
            return [*talker.shell_complete(ctx, incomplete)]
        return super().shell_complete(ctx, incomplete)

    def _with_subcommand(self, args: list[str], resilient: bool) -> list[str]:
        position = 0
        takes_value = {name for command in self.commands.values() for name in _valued_options(command)}
        known = {name for command in self.commands.values() for name in _options(command)}
        while position < len(args) and args[position].startswith("-"):
            if args[position].startswith("--") and args[position].partition("=")[0] not in known:
                return ["talker", *args]  # whose parser rejects it
            position += 2 if args[position] in takes_value else 1
        if position >= len(args):
            return ["talker", *args]
        options, target, rest = args[:position], args[position], args[position + 1 :]
        if target in self.commands:
            return [target, *options, *rest]
        return args if resilient else [_kind_of(target), *options, target, *rest]


class _TargetCommand(TyperCommand):
    """Command of one target that says which other target has an option that it lacks."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse, and explain options of other targets."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if not hasattr(error, "possibilities") or ctx.parent is None:
                raise
            option: str = error.option_name  # type: ignore[attr-defined]
            group = ctx.parent.command
            owners = [f"`trace {name}`" for name, command in group.commands.items() if option in _options(command)]
            after = "; write options of the function after its name" if self.name == "call" else ""
            if owners:
                raise ValueError(
                    f"{option}: only for {' and '.join(owners)}, not for `trace {self.name}`{after}"
                ) from error
            if after:
                raise ValueError(f"{option}: no such option of `trace call`{after}") from error
            raise


def _options(command: Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def _valued_options(command: Command) -> set[str]:
    """Return the spellings of the options that are followed by a value."""
    return {
        name
        for parameter in command.params
        if parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False)
        for name in parameter.opts
    }


def _kind_of(target: str) -> str:
    """Return the subcommand that a short form stands for."""
    path = Path(target)
    if target.endswith(".py"):
        raise ValueError(f"{target}: name a function in it, as {'.'.join(path.with_suffix('').parts)}:FUNCTION")
    if target.endswith(".json") or (target and path.is_dir()):
        return "model"
    if ":" in target:
        return "call"
    reason = "is no config; its name must end in .json" if path.exists() else "no such folder, and no known target"
    raise ValueError(f"{target or repr(target)}: {reason}; give {_TARGETS}")


trace_app = new_app(
    "trace",
    "Run a model, record every module call, and print where the time went.\n\n"
    "Without a target, the talker is traced. `trace DIR` is short for `trace model DIR`, and "
    "`trace package.module:function` for `trace call package.module:function`. "
    "`talkerviz trace talker --help` lists the options of the talker, and so on.",
    cls=_TargetGroup,
    subcommand_metavar="[TARGET] [OPTIONS]...",
)
app.add_typer(trace_app, name="trace")


@trace_app.command(cls=_TargetCommand)
@with_option_groups
def talker(
    *,
    family: Annotated[
        FamilyName,
        typer.Option(rich_help_panel=MODEL_PANEL, help="Family of talkers; all but qwen3-omni are transformers' own."),
    ] = "qwen3-omni",
    preset_name: Preset = None,
    checkpoint: Checkpoint = None,
    impl: Annotated[
        Impl, typer.Option(rich_help_panel=MODEL_PANEL, help="Implementation of the talker: ours or transformers'.")
    ] = "native",
    device: RunDevice = "auto",
    dtype: WeightsDtype = None,
    compile_layers: Compile = False,
    fused: Fused = False,
    graphs: Graphs = False,
    weight_format: WeightFormat = None,
    inputs: Inputs = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=INPUT_PANEL, help="Length of the user's prompt in tokens; 11 by default."
        ),
    ] = None,
    text_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=INPUT_PANEL,
            help="Length of the text to speak in tokens, its 3 role tokens included; 20 by default.",
        ),
    ] = None,
    frames: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=INPUT_PANEL, help="Number of frames to speak, of 80 ms for qwen3-omni."
        ),
    ] = 8,
    speaker: Speaker = None,
    seed: Seed = 0,
    recording: RecordingOptions,
    codes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=OUTPUT_PANEL, help="JSON file to write the greedy codes to, for `speak`."
        ),
    ] = None,
) -> None:
    """Trace the talker: it speaks a few frames, greedily."""
    if family != "qwen3-omni":
        refused = {
            "--device meta": device == "meta",
            "--impl": impl != "native",
            "--compile": compile_layers,
            "--fused": fused,
            "--graphs": graphs,
            "--inputs": inputs is not None,
            "--speaker": speaker is not None,
            "--codes": codes is not None,
            "--weights": weight_format is not None,
        }
        if options := [option for option, is_given in refused.items() if is_given]:
            raise ValueError(f"{options[0]}: only for --family qwen3-omni, not {family}; leave it out")
    on_meta = device == "meta"
    native_only = {"compile": compile_layers, "fused": fused, "graphs": graphs, "weights int8": weight_format}
    if on_meta and impl == "transformers":
        raise ValueError("--device meta: transformers' talker reads values, which are not there; use --impl native")
    if on_meta and codes:
        raise ValueError("--codes: the meta device computes no codes")
    if on_meta or impl == "transformers":
        for name in [name for name, wanted in native_only.items() if wanted]:
            raise ValueError(f"--{name}: only the native talker has it, and not on the meta device")
    lengths = {"prompt_tokens": prompt_tokens, "text_tokens": text_tokens}
    given_lengths = {name: tokens for name, tokens in lengths.items() if tokens is not None}
    if inputs and given_lengths:
        raise ValueError(f"{option_name(next(iter(given_lengths)))}: --inputs says how many tokens there are")
    source = _weights_source(preset_name, checkpoint)

    from talkerviz.cli.record_target import record_target
    from talkerviz.talker.files.weight_loader import OnBytes
    from talkerviz.talker.generation.scenario import Scenario
    from talkerviz.talker.model.talker import Acceleration
    from talkerviz.targets import FAMILIES, Speech, Target, family_target, talker_of, talker_target

    scenario = Scenario(**given_lengths, speaker=speaker or "ethan", frames=frames, seed=seed)
    weights = device_name(device), torch_dtype(dtype)
    if family != "qwen3-omni":
        # To other talkers, what the user says and what they speak is one text.
        speech = Speech(scenario.prompt_tokens + scenario.text_tokens, frames, seed)
        record_target(lambda on_bytes: family_target(FAMILIES[family], source, *weights, speech), recording)
        return
    faster = Acceleration(compile_layers, fused, graphs)

    def build(on_bytes: OnBytes) -> Target:
        loaded = talker_of(source, impl, *weights, scenario, inputs, on_bytes, faster, int8=weight_format == "int8")
        if choice := compile_choice(loaded.facts):
            print_message(choice)
        return talker_target(loaded)

    record_target(
        build,
        recording,
        on_meta=on_meta,
        # Replayed frames call no module and no operation of torch.
        replays_graphs=graphs,
        codes=codes,
    )


@trace_app.command(cls=_TargetCommand)
@with_option_groups
def code2wav(
    *,
    preset_name: Preset = None,
    checkpoint: Checkpoint = None,
    device: ComputeDevice = "auto",
    dtype: WeightsDtype = None,
    codes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=INPUT_PANEL,
            help="JSON file to read codes from, as `trace talker --codes` writes it; random by default.",
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=INPUT_PANEL, help="Number of 80 ms frames of random codes.")
    ] = 8,
    seed: Seed = 0,
    recording: RecordingOptions,
) -> None:
    """Trace code2wav: it decodes codes to sound, a pass per chunk of frames."""
    if device == "meta":
        raise ValueError("--device meta: only for `trace talker` and `trace model`; use cpu or cuda")
    source = _weights_source(preset_name, checkpoint)

    from talkerviz.cli.record_target import record_target
    from talkerviz.targets import code2wav_target

    weights = device_name(device), torch_dtype(dtype)
    record_target(
        lambda on_bytes: code2wav_target(source, *weights, codes, frames, seed, on_bytes),
        recording,
    )


@trace_app.command(cls=_TargetCommand)
@with_option_groups
def model(
    *,
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a config.json, or the config file itself.")],
    device: RunDevice = "auto",
    dtype: WeightsDtype = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=INPUT_PANEL,
            help="Number of tokens to generate per sequence; 8 by default.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", rich_help_panel=INPUT_PANEL, help="Length of the prompt in tokens; 12 by default."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", rich_help_panel=INPUT_PANEL, help="Number of sequences per batch.")
    ] = 1,
    seed: Seed = 0,
    recording: RecordingOptions,
) -> None:
    """Trace a transformers model from its config: it generates tokens, or makes one forward pass."""
    from talkerviz.cli.record_target import record_target
    from talkerviz.targets import Target, config_target

    on_meta = device == "meta"
    weights = device_name(device), torch_dtype(dtype)

    def build(_: object) -> Target:
        target = config_target(path, *weights, max_new_tokens, prompt_tokens, batch, seed)
        name = type(target.model).__name__
        if max_new_tokens is not None and target.facts["runs"] != "generate":
            reason = "on the meta device it makes one forward pass" if on_meta else f"{name} does not generate"
            raise ValueError(f"--max-new-tokens: {reason}; leave it out")
        if prompt_tokens is not None and "input_ids" not in target.facts["inputs"]:
            raise ValueError(f"--prompt-tokens: {name} takes no text; leave it out")
        return target

    record_target(build, recording, on_meta=on_meta)


@trace_app.command(
    cls=_TargetCommand,
    # Everything after the function's name is the function's.
    context_settings={"allow_interspersed_args": False},
)
@with_option_groups
def call(
    *,
    function: Annotated[
        str,
        typer.Argument(
            metavar="FUNCTION",
            help="Function that returns (model, callable), as package.module:function; the callable runs the model.",
        ),
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="Arguments of the function, its sys.argv[1:].")
    ] = None,
    recording: RecordingOptions,
) -> None:
    """Trace the model that a function of yours returns. Options of `trace` come before the function's name."""
    from talkerviz.cli.record_target import record_target
    from talkerviz.targets import function_target

    record_target(lambda on_bytes: function_target(function, arguments or ()), recording)


def _weights_source(preset_name: str | None, checkpoint: Path | None) -> str | Path:
    """Return the checkpoint's folder or the preset's name."""
    if checkpoint and preset_name is not None:
        raise ValueError("--preset: --checkpoint says which weights they are; give one of them")
    return checkpoint or ("lite" if preset_name is None else preset_name)
