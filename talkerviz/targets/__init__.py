"""Targets of a trace: talker, code2wav, a Hugging Face config, and a function of the user's."""

from talkerviz.targets.code2wav import code2wav_config_of, code2wav_of, code2wav_target
from talkerviz.targets.function import function_target
from talkerviz.targets.huggingface.target import config_target, is_config
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
    "is_config",
    "talker_of",
    "talker_target",
]
