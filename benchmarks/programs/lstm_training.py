"""Training of a recurrent language model by truncated backpropagation, with modules of torch."""

import torch
from torch import nn

torch.manual_seed(0)
embed, lstm, head = nn.Embedding(500, 128), nn.LSTM(128, 256, 2, batch_first=True), nn.Linear(256, 500)
optimizer = torch.optim.Adam([*embed.parameters(), *lstm.parameters(), *head.parameters()])
criterion = nn.CrossEntropyLoss()
text = torch.randint(500, (8, 32 * 20 + 1))
state = None
for start in range(0, 32 * 20, 32):
    piece = text[:, start : start + 33]
    hidden, state = lstm(embed(piece[:, :-1]), state)
    state = tuple(part.detach() for part in state)
    loss = criterion(head(hidden).flatten(0, 1), piece[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
