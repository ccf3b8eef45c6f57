"""A training loop with validation, to be recorded as it is.

talkerviz run -o training.parquet examples/training_program.py
talkerviz show training.parquet --by phase
talkerviz tree training.parquet --phase backward
"""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
classifier = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 10))
optimizer = torch.optim.AdamW(
    [
        {"name": "body", "params": classifier[0].parameters()},
        {"name": "head", "params": classifier[2].parameters(), "lr": 1e-2},
    ]
)
data = DataLoader(TensorDataset(torch.randn(128, 64), torch.randint(10, (128,))), batch_size=32)

for _ in range(2):
    classifier.train()
    for x, y in data:
        optimizer.zero_grad()
        functional.cross_entropy(classifier(x), y).backward()
        optimizer.step()
    classifier.eval()
    with torch.no_grad():
        right = sum(int((classifier(x).argmax(-1) == y).sum()) for x, y in data)
    print(f"{right} of 128 right")
