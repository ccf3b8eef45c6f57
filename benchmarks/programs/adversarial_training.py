"""Adversarial training of two networks of torch, each with an optimizer."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(
    nn.ConvTranspose2d(32, 64, 4), nn.BatchNorm2d(64), nn.ReLU(), nn.ConvTranspose2d(64, 3, 4, 4), nn.Tanh()
)
judge = nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.LeakyReLU(0.2), nn.Conv2d(64, 1, 4), nn.Flatten())
of_generator, of_judge = (torch.optim.Adam(net.parameters(), lr=2e-4) for net in (generator, judge))
criterion = nn.BCEWithLogitsLoss()
for _ in range(60):
    real, fake = torch.randn(16, 3, 16, 16), generator(torch.randn(16, 32, 1, 1))
    of_judge.zero_grad()
    (criterion(judge(real), torch.ones(16, 1)) + criterion(judge(fake.detach()), torch.zeros(16, 1))).backward()
    of_judge.step()
    of_generator.zero_grad()
    criterion(judge(fake), torch.ones(16, 1)).backward()
    of_generator.step()
