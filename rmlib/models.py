"""PreAct ResNet-18 for small images, wide or narrow, with the normalisation as its first layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmlib import UserError, checked

Floats = Sequence[float]  # three values, one per channel


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """3 x 3 convolution with padding and without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


class Conv1x1(nn.Conv2d):
    """1 x 1 convolution without bias; on the CPU it takes every stride-th pixel first.

    That is the same sum, and it avoids a mistake of oneDNN (its issue 6035; also in torch 2.15).
    There the weights' gradient writes past its workspace. This needs a strided 1 x 1 convolution
    in channels_last with fewer than 16 channels. Narrow networks crashed on 64 x 64 pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        step = self.stride[0]
        if step == 1 or x.device.type != "cpu":
            return super().forward(x)
        return F.conv2d(x[:, :, ::step, ::step], self.weight)


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; the projection takes the first BN-ReLU, an identity the raw input."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.shortcut = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(Conv1x1(in_channels, channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class PreActResNet18(nn.Module):
    """Stem, four stages of two blocks, pooling, linear head; see :func:`preact_resnet18`."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        width: int,
        stem_stride: int,
        mean: Floats,
        std: Floats,
        final_norm: bool,
    ):
        super().__init__()
        for name, values, least in (("mean", mean, -1e9), ("std", std, 1e-9)):
            if len(values) != 3:
                raise UserError(f"{name}={values}: expected three values, one per channel")
            hint = "; are all images of one colour?" if name == "std" else ""
            numbers = [checked(name, value, least, 1e9, float, hint) for value in values]
            buffer = torch.tensor(numbers, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self.conv1 = conv3x3(3, width, stem_stride)
        self.layer1 = self._stage(width, width, stride=1)
        self.layer2 = self._stage(width, 2 * width, stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, stride=2)
        self.layer4 = self._stage(4 * width, 8 * width, stride=2)
        self.final_bn = nn.BatchNorm2d(8 * width) if final_norm else None
        self.linear = nn.Linear(8 * width, num_classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        first = PreActBlock(in_channels, channels, stride)
        return nn.Sequential(first, PreActBlock(channels, channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1((images - self.mean) / self.std)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        if self.final_bn is not None:
            x = F.relu(self.final_bn(x))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def preact_resnet18(
    num_classes: int,
    width: int = 64,
    stem_stride: int = 1,
    mean: Floats | None = None,
    std: Floats | None = None,
    final_norm: bool = False,
) -> PreActResNet18:
    """PreAct ResNet-18 as in kuangliu/pytorch-cifar: plain stem, no BN-ReLU before the pooling.

    Paper: He et al. 2016, "Identity mappings in deep residual networks",
    https://arxiv.org/abs/1603.05027. Public networks of this name differ in stem, shortcut and
    final normalisation. Weights published for kuangliu's load here: module names and parameters are
    the same. At width 64 there are 11 171 146 parameters for 10 classes, 11 217 316 for 100, and
    11 268 616 for 200. What differs: global average pooling, so that 32- and 64-pixel images both
    work, and the normalisation inside.

    Args:
        num_classes: length of the logits.
        width: channels of the first stage; 64 in the paper.
        stem_stride: 1, or 2 for a quarter of the cost (used by some for 64-pixel images).
        mean, std: three values each for inputs in [0, 1]; None leaves the input as it is. They
            belong to the data, so they are buffers outside the state dict.
        final_norm: add the BN-ReLU that He et al. put before the pooling.

    Input (N, 3, H, W) floating point in [0, 1], output logits (N, num_classes).
    """
    num_classes = checked("num_classes", num_classes, 2, 1e9, int)
    width = checked("width", width, 1, 1e9, int)
    stem_stride = checked("stem_stride", stem_stride, 1, 1e9, int)
    mean = (0.0, 0.0, 0.0) if mean is None else mean
    std = (1.0, 1.0, 1.0) if std is None else std
    return PreActResNet18(num_classes, width, stem_stride, mean, std, final_norm)
