"""Targets of a trace: talker, code2wav, a Hugging Face config, and a function of the user's."""

from talkerviz.targets.code2wav import code2wav_config_of, code2wav_of, code2wav_target
from talkerviz.targets.function import function_target
from talkerviz.targets.huggingface.target import config_target
from talkerviz.targets.talker import Loaded, talker_of, talker_target
from talkerviz.targets.target import OnFrame, Target

__all__ = [
    "Loaded",
    "OnFrame",
    "Target",
    "code2wav_config_of",
    "code2wav_of",
    "code2wav_target",
    "config_target",
    "function_target",
    "talker_of",
    "talker_target",
]
