"""From a conversation to the thinker's inputs, through the processor of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

# A turn as transformers' chat templates take it: a role, and a text or a list of parts such as
# {"type": "audio", "audio": path}, {"type": "image", "image": path}, {"type": "text", "text": ...}.
Turn = Mapping[str, Any]


def load_processor(directory: Path) -> Any:
    """The `Qwen3OmniMoeProcessor` of a checkpoint's directory, for text, audio and images.

    Raises:
        ValueError: a package is missing, or the directory has no such processor.
    """
    for package in ("PIL", "soundfile", "soxr"):
        if find_spec(package) is None:
            raise ValueError(f"capture needs {package}: pip install 'talkerviz[capture]'")
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, Qwen3OmniMoeProcessor

    class WithoutVideo(Qwen3OmniMoeProcessor):  # type: ignore[misc]
        """For videos alone it needs torchvision, which must fit the build of torch: that of pictures stands in."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **local)
        settings, _ = Qwen3OmniMoeProcessor.get_processor_dict(directory, local_files_only=True)
        template = settings.get("chat_template") or tokenizer.chat_template
        if template is None:
            raise ValueError("there is no chat template")
        pictures = AutoImageProcessor.from_pretrained(directory, **local)
        sounds = AutoFeatureExtractor.from_pretrained(directory, **local)
        return WithoutVideo(pictures, pictures, sounds, tokenizer, chat_template=template)
    except Exception as error:  # of many kinds, by what is amiss in which of its files
        raise ValueError(f"{directory}: its processor cannot be loaded: {error}") from error


def thinker_inputs(processor: Any, conversation: Sequence[Turn]) -> dict[str, Any]:
    """What the thinker's `generate` takes, for an answer to a conversation.

    Raises:
        ValueError: a file in it is no audio or image that can be read, or the chat template does not take it.
    """
    parts = [part for turn in conversation if not isinstance(turn["content"], str) for part in turn["content"]]
    rate = processor.feature_extractor.sampling_rate
    audio = [read_audio(Path(part["audio"]), rate) for part in parts if part["type"] == "audio"]
    images = [read_image(Path(part["image"])) for part in parts if part["type"] == "image"]
    try:
        text = processor.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"the chat template does not take this: {error}") from error
    # Empty lists are not taken for none.
    return dict(processor(text=[text], audio=audio or None, images=images or None, return_tensors="pt"))


def read_audio(path: Path, rate: int) -> Any:
    """Samples [n] of a sound file, float32, its channels mixed, at `rate` samples a second.

    Raises:
        ValueError: it cannot be read, or lasts less than 0.1 s.
    """
    import soundfile
    import soxr

    try:
        samples, its_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path}: not a sound file that can be read: {error}") from error
    if len(samples) < its_rate / 10:
        raise ValueError(f"{path}: has {len(samples)} samples at {its_rate} Hz: less than 0.1 s is too short")
    mixed = samples.mean(axis=1)
    return mixed if its_rate == rate else soxr.resample(mixed, its_rate, rate)


def read_image(path: Path) -> Any:
    """A picture as Pillow has it, upright, RGB.

    Raises:
        ValueError: it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a picture that can be read: {error}") from error
