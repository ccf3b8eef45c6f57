"""A pipeline of three models, of which one is called for each step, to be recorded as it is.

talkerviz run -o steps.parquet examples/pipeline_program.py --steps 8
talkerviz show steps.parquet --by frame
"""

import argparse

import torch
from torch import Tensor, nn


class Painter:
    """Holds its models as attributes, as a diffusion pipeline does."""

    def __init__(self) -> None:
        self.text_encoder = nn.Embedding(100, 32)
        self.denoiser = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 32))
        self.decoder = nn.Linear(32, 48)

    @torch.no_grad()
    def __call__(self, prompt: Tensor, steps: int) -> Tensor:
        """Return an image of [1, 48] values for a prompt."""
        text = self.text_encoder(prompt).mean(0, keepdim=True)  # [1, 32]
        latent = torch.randn(1, 32)
        for _ in range(steps):
            latent = latent - 0.1 * self.denoiser(torch.cat((latent, text), -1))
        return self.decoder(latent)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    torch.manual_seed(0)
    print(Painter()(torch.arange(5), parser.parse_args().steps).shape)
