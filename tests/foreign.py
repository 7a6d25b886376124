"""Networks as other people build them, small and with weights that tell classes apart."""

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

MEAN, STD = [0.5, 0.4, 0.3], [0.3, 0.2, 0.25]


def normalised(model, inplace=False):
    """A network on images in [0, 1], as torchvision's users make one."""
    return nn.Sequential(torchvision.transforms.Normalize(MEAN, STD, inplace), model)


def telling(model, seed=0):
    """Random weights whose logits differ clearly, heads that torchvision starts at 0 among them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            std = (2 / parameter[0].numel()) ** 0.5
            nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval()


def convolutional(name="resnet18", classes=4):
    return normalised(telling(getattr(torchvision.models, name)(num_classes=classes)))


def vit(classes=4):
    """torchvision's, with 4 x 4 patches of an image of 32 pixels."""
    return normalised(
        telling(torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=classes))
    )


def swin(classes=4):
    """torchvision's, whose layers give (N, h, w, K)."""
    sizes = [2, 2], 16, [2, 2], [2, 2], [4, 4]
    return normalised(telling(torchvision.models.SwinTransformer(*sizes, num_classes=classes)))


class Block(nn.Module):
    """A block of timm's: tokens before and after, and an attention that is a function."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, tokens):
        count, places, width = tokens.shape
        parts = self.qkv(self.norm1(tokens)).view(count, places, 3, self.heads, -1)
        mixed = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        tokens = tokens + self.proj(mixed.transpose(1, 2).reshape(count, places, width))
        return tokens + F.gelu(self.mlp(self.norm2(tokens)))


class Tokens(nn.Module):
    """timm's kind of ViT: a class token, or the mean of the others, goes through a linear head."""

    def __init__(self, pool="avg", classes=4, width=16):
        super().__init__()
        self.pool, self.patch_embed = pool, nn.Conv2d(3, width, 8, stride=8)
        self.cls_token = nn.Parameter(
            torch.randn(1, 1, width, generator=torch.Generator().manual_seed(1))
        )
        self.blocks, self.head = (
            nn.Sequential(Block(width), Block(width)),
            nn.Linear(width, classes),
        )

    def forward_features(self, images):
        patches = self.patch_embed(images).flatten(2).mT
        return self.blocks(torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1))

    def forward_head(self, tokens):
        return self.head(tokens[:, 1:].mean(1) if self.pool == "avg" else tokens[:, 0])

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


class Twice(nn.Module):
    """One ReLU for two places, under two names; an auxiliary head that is not asked, and a part
    whose output is thrown away.
    """

    def __init__(self, classes=4):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.head = nn.ReLU(), nn.Linear(6, classes)
        self.act, self.last = self.relu, self.second
        self.unasked, self.wasted, self.cut = (nn.Conv2d(6, 6, 1) for _ in range(3))

    def forward(self, images):
        values = self.relu(self.first(images))
        self.wasted(values)
        values = values + self.cut(values).detach()
        return self.head(self.relu(self.second(values)).mean((2, 3)))
