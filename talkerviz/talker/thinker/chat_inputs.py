"""The thinker's inputs for a conversation, from its checkpoint's processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

# A turn in the format of transformers' chat templates: a role, and a text or a list of parts such as
# {"type": "audio", "audio": path}, {"type": "image", "image": path}, {"type": "text", "text": ...}.
Turn = Mapping[str, Any]


def load_processor(directory: Path) -> Any:
    """Load the `Qwen3OmniMoeProcessor` of a checkpoint's folder, for text, audio and images.

    Raises:
        ValueError: a package is missing, or the folder has no such processor.
    """
    for package in ("PIL", "soundfile", "soxr"):
        if find_spec(package) is None:
            raise ValueError(f"capture needs {package}: pip install 'talkerviz[capture]'")
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, Qwen3OmniMoeProcessor

    class WithoutVideo(Qwen3OmniMoeProcessor):  # type: ignore[misc]
        """Processor with the image processor for videos, whose own needs torchvision of torch's exact build."""

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
        image_processor = AutoImageProcessor.from_pretrained(directory, **local)
        feature_extractor = AutoFeatureExtractor.from_pretrained(directory, **local)
        return WithoutVideo(image_processor, image_processor, feature_extractor, tokenizer, chat_template=template)
    except Exception as error:  # transformers raises many classes here
        raise ValueError(f"{directory}: its processor cannot be loaded: {error}") from error


def thinker_inputs(processor: Any, conversation: Sequence[Turn]) -> dict[str, Any]:
    """Return the arguments of the thinker's `generate` for an answer to a conversation.

    Raises:
        ValueError: an audio or image file cannot be read, or the chat template does not take the conversation.
    """
    parts = [part for turn in conversation if not isinstance(turn["content"], str) for part in turn["content"]]
    rate = processor.feature_extractor.sampling_rate
    audio = [read_audio(Path(part["audio"]), rate) for part in parts if part["type"] == "audio"]
    images = [read_image(Path(part["image"])) for part in parts if part["type"] == "image"]
    try:
        text = processor.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"the chat template does not take this conversation: {error}") from error
    # The processor takes None for no audio, but not an empty list.
    return dict(processor(text=[text], audio=audio or None, images=images or None, return_tensors="pt"))


def read_audio(path: Path, rate: int) -> Any:
    """Read an audio file as mono float32 samples [n] at `rate` samples per second.

    Raises:
        ValueError: it cannot be read, or lasts less than 0.1 s.
    """
    import soundfile
    import soxr

    try:
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path}: not a readable audio file: {error}") from error
    if len(samples) < file_rate / 10:
        raise ValueError(f"{path}: has {len(samples)} samples at {file_rate} Hz: less than 0.1 s is too short")
    mixed = samples.mean(axis=1)
    return mixed if file_rate == rate else soxr.resample(mixed, file_rate, rate)


def read_image(path: Path) -> Any:
    """Read an image with Pillow, upright and in RGB.

    Raises:
        ValueError: it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error
