"""Training of a denoising model of diffusers, in bfloat16 by autocast."""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch.nn import functional

torch.manual_seed(0)
unet = UNet2DModel(
    sample_size=16,
    in_channels=3,
    out_channels=3,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
noise_schedule = DDPMScheduler(num_train_timesteps=100)
optimizer = torch.optim.AdamW(unet.parameters(), foreach=True)
for _ in range(20):
    images, noise = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    times = torch.randint(100, (4,))
    with torch.autocast("cpu", torch.bfloat16):
        guess = unet(noise_schedule.add_noise(images, noise, times), times).sample
    functional.mse_loss(guess.float(), noise).backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
