"""Targets of a trace: talker, talkers of other families, code2wav, a Hugging Face config, and a user's function."""

from talkerviz.targets.code2wav import code2wav_config_of, code2wav_of, code2wav_target
from talkerviz.targets.families import FAMILIES, Speech
from talkerviz.targets.families.target import family_target
from talkerviz.targets.function import function_target
from talkerviz.targets.huggingface.target import config_target
from talkerviz.targets.talker import Loaded, talker_of, talker_target
from talkerviz.targets.target import OnFrame, Target

__all__ = [
    "FAMILIES",
    "Loaded",
    "OnFrame",
    "Speech",
    "Target",
    "code2wav_config_of",
    "code2wav_of",
    "code2wav_target",
    "config_target",
    "family_target",
    "function_target",
    "talker_of",
    "talker_target",
]
