"""Networks whose answers are known, and images for them."""

import torch
from torch import nn

from rmlib.models import preact_resnet18
from rmlib.robustness import attacks

BY_GRADIENT = ("fgsm", "fgsm_margin", "pgd")
FAST = (*BY_GRADIENT, "square")  # all but autoattack, which has its own tests


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


def few(attack, number):
    """The option that makes an attack short, where it has one."""
    name = {"pgd": "steps"}.get(attack, "queries")
    return {name: number} if name in attacks.OPTIONS[attack] else {}


def network(seed=0):
    torch.manual_seed(seed)
    return preact_resnet18(4, 2).eval()


class Pooled(nn.Module):
    """conv -> features -> average -> linear: behind the features the gradient is the head's weight
    over the number of grid points.
    """

    def __init__(self, classes=3, channels=5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Conv2d(3, channels, 4, stride=4)
        self.linear = nn.Linear(channels, classes)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, images):
        return self.linear(self.features(images).mean((2, 3)))


class Answering(nn.Module):
    """A network whose logits come back in another form."""

    def __init__(self, answer):
        super().__init__()
        self.net, self.answer = network(), answer

    def forward(self, images):
        return self.answer(self.net(images))


# form -> what the message calls it
NO_LOGITS = {
    lambda logits: (logits, None): "tuple",
    lambda logits: {"logits": logits}: "dict",
    lambda logits: [logits]: "list",
    lambda logits: None: "NoneType",
    lambda logits: logits[:, 0]: r"\(\d+,\)",
    lambda logits: logits.mean(0, keepdim=True): r"\(1, 4\)",
}
