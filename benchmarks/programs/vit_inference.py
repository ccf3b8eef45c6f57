"""Image classification with a vision transformer of timm."""

import timm
import torch

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
with torch.no_grad():
    for _ in range(20):
        model(torch.randn(1, 3, 224, 224))
