"""Training of a residual network of timm, with a loader and a schedule."""

import timm
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
model = timm.create_model("resnet10t", num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
data = DataLoader(TensorDataset(torch.randn(48, 3, 96, 96), torch.randint(10, (48,))), batch_size=8, shuffle=True)
for images, labels in data:
    loss = functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
