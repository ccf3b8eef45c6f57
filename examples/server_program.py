"""A server of a small language model, to be recorded as it is while clients ask it.

talkerviz run --signal USR2 -o server.parquet examples/server_program.py --port 8000 &
kill -USR2 $!    # begins a recording
curl -X POST http://127.0.0.1:8000/generate/8
kill -USR2 $!    # ends it
"""

import argparse
import asyncio
import threading

import torch
import uvicorn
from fastapi import FastAPI
from torch import Tensor, nn

torch.manual_seed(0)
torch.set_grad_enabled(False)


class LanguageModel(nn.Module):
    """A language model without a memory: each token follows from the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(100, 32), nn.Sequential(nn.Linear(32, 32), nn.GELU())
        self.head = nn.Linear(32, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores of the next token, [batch, 1, 100] for tokens of [batch, 1]."""
        return self.head(self.layers(self.embed(tokens)))


app = FastAPI()
model = LanguageModel().eval()
model_lock = threading.Lock()  # requests take turns: a thread computes a token and lets another go on


def generate(length: int) -> list[int]:
    """Return greedy tokens."""
    tokens = [0]
    for _ in range(length):
        with model_lock:
            scores = model(torch.tensor([[tokens[-1]]]))
        tokens.append(int(scores[0, -1].argmax()))
    return tokens[1:]


@app.post("/generate/{length}")
async def answer(length: int) -> dict[str, list[int]]:
    """Answer a request on a thread of its own."""
    return {"tokens": await asyncio.to_thread(generate, length)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, port=parser.parse_args().port, log_level="warning")
