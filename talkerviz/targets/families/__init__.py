"""Talkers of transformers beside Qwen3-Omni's."""

from talkerviz.targets.families.bark import BARK
from talkerviz.targets.families.csm import CSM
from talkerviz.targets.families.dia import DIA
from talkerviz.targets.families.family import Family, Speech
from talkerviz.targets.families.moshi import MOSHI
from talkerviz.targets.families.qwen2_5_omni import QWEN2_5_OMNI

FAMILIES = {family.name: family for family in (CSM, DIA, MOSHI, QWEN2_5_OMNI, BARK)}

__all__ = ["FAMILIES", "Family", "Speech"]
