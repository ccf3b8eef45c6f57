"""transformers without warnings, bars and network: what the terminal shows is ours, and nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Build or run a model of transformers inside: silent, and from what is on this machine alone.

    Some models look for weights of a backbone, or for kernels, which are code, on the Hub: here they find it switched
    off, and do without or raise.
    """
    from huggingface_hub import constants
    from transformers.integrations import hub_kernels
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    offline, kernels = constants.HF_HUB_OFFLINE, hub_kernels._kernels_enabled
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    constants.HF_HUB_OFFLINE, hub_kernels._kernels_enabled = True, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_OFFLINE, hub_kernels._kernels_enabled = offline, kernels
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
