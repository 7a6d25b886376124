"""Networks whose answers are known, and images for them."""

import torch
from torch import nn


class Linear(nn.Module):
    """Logits (margin, 0), margin = <w, x> + b: FGSM of eps moves the margin by exactly eps * |w|_1
    where nothing is clipped.
    """

    def __init__(self, size=4, bias=0.0, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, size, size, generator=generator).to(dtype))
        self.bias = bias

    def forward(self, images):
        margin = (images * self.w).sum((1, 2, 3)) + self.bias
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def touchy(count, size=8):
    """A linear network with small margins, and images of class 0 of which it has three quarters
    right: some fall, some do not.
    """
    images, _ = pixels(count, size, seed=1)
    model = Linear(size)
    model.requires_grad_(False)
    model.bias = -float(model(images)[:, 0].quantile(0.25))
    return model, images, torch.zeros(count, dtype=torch.int64)


def pixels(count=12, size=8, seed=0, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (
        low + (high - low) * torch.rand(count, 3, size, size, generator=generator),
        torch.arange(count) % 3,
    )


def loud(model, factor=1e6):
    """The same decisions with logits times a factor: a masked gradient."""
    louder = nn.Sequential(model, nn.Identity())
    louder[1].register_forward_hook(lambda module, inputs, logits: factor * logits)
    return louder
