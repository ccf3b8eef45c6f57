"""Sounds: waves, and the spectra that most models hear."""

from __future__ import annotations

from torch import Tensor

from talkerviz.foreign.ask import Ask

_KINDS = "audio speech encoder"


def bins(ask: Ask) -> int:
    """Mel bins of a spectrum."""
    names = ("num_mel_bins", "feature_size", "n_mels", "input_feat_per_channel", "mel_bins", "num_mels", "input_dim")
    return ask.size(_KINDS, *names, "feature_projection_input_dim", default=80)


def spectra(ask: Ask) -> list[Tensor]:
    """`input_features`: bins first or last, as long as the config says or a second or so."""
    most = ask.of("audio encoder", "max_source_positions")
    exact = 2 * most if isinstance(most, int) else 128
    mel = bins(ask)
    first = [ask.real(1, mel, length) for length in (exact, 128, 200)]
    last = [ask.real(1, length, mel) for length in (128, exact)]
    return [first[0], last[0], *first[1:], *last[1:], ask.real(1, 1, 1024, mel)]


def waves(ask: Ask) -> list[Tensor]:
    """`input_values`: half a second of a wave, alone or as one channel; or a spectrum of the config's length."""
    wave = ask.real(1, 9600)
    length = ask.of("audio", "max_length")
    spectrum = (
        [ask.real(1, length, bins(ask))] if isinstance(length, int) and hasattr(ask.config, "num_mel_bins") else []
    )
    return [*spectrum, wave, wave[:, None]]
