"""transformers without warnings, progress bars and network access."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers inside, and keep it offline.

    Some models look on the Hub for a backbone's weights, or for kernels, which are code: offline they do without them
    or raise.
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
