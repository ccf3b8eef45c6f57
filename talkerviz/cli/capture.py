"""`talkerviz capture`."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from talkerviz.cli.app import app
from talkerviz.cli.model_options import ComputeDevice, WeightsDtype, device_name, torch_dtype
from talkerviz.cli.output import check_writable, console
from talkerviz.render.escape import one_line
from talkerviz.talker.files.thinker_file import write_inputs
from talkerviz.talker.thinker.chat_inputs import Turn
from talkerviz.talker.thinker.thinker_capture import capture_answer
from talkerviz.targets.huggingface.quiet_transformers import quiet


@app.command()
def capture(
    checkpoint: Annotated[Path, typer.Option(metavar="DIR", help="Qwen3-Omni checkpoint folder.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="File to write, for `--inputs` of trace and speak.")
    ],
    text: Annotated[str | None, typer.Option(help="Text of the user, after all audio and images.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Audio file; repeatable.")] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Image file; repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=2, metavar="N", help="Maximum length of the answer in tokens.")
    ] = 1024,
    device: ComputeDevice = "auto",
    dtype: WeightsDtype = None,
) -> None:
    """Run transformers' thinker once, greedily, and write its outputs for the talker."""
    check_writable(output)
    if device == "meta":
        raise ValueError("--device meta: it computes no values; use cpu or cuda")
    files = [*(audio or []), *(image or [])]
    if not text and not files:
        raise ValueError("no input: give --text, --audio or --image")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
    conversation: list[Turn] = [{"role": "system", "content": system}] if system else []
    parts = [{"type": "audio", "audio": str(file)} for file in audio or []]
    parts += [{"type": "image", "image": str(file)} for file in image or []]
    parts += [{"type": "text", "text": text}] if text else []
    conversation.append({"role": "user", "content": parts})

    with Console(stderr=True).status("running the thinker"), quiet():
        answer = capture_answer(
            checkpoint,
            conversation,
            max_new_tokens=max_new_tokens,
            device=device_name(device),
            dtype=torch_dtype(dtype),
        )
    write_inputs(
        output,
        answer.thinker,
        answer.user_ids,
        answer.assistant_ids,
        {
            "answer": answer.answer,
            "accept_hidden_layer": str(answer.accept_hidden_layer),
            "transformers": importlib.metadata.version("transformers"),
        },
    )
    terminal = console()
    terminal.print(one_line(answer.answer), markup=False, highlight=False, soft_wrap=True)
    if not answer.finished:
        terminal.print(f"--max-new-tokens {max_new_tokens} ended it", style="dim", highlight=False)
    multimodal = int(answer.thinker.multimodal.sum())
    terminal.print(
        f"{answer.user_ids.shape[1]} tokens of the user, {multimodal} of them audio or images, "
        f"{answer.assistant_ids.shape[1]} of the answer -> {output}",
        highlight=False,
        soft_wrap=True,
    )
