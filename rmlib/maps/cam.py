"""Class activation maps: Grad-CAM++ and HiResCAM at any layer of a network.

``gradcam++``: Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063, equation 19, as grad-cam
computes it: on the logit itself (the paper takes its exponential, which cancels in the weights),
with eps = 1e-6 in the denominator of the weights. Behind a global pooling that eps can weigh as
much as squared gradients; :func:`closed_form` takes another one. ``hirescam``: Draelos & Carin
2020, https://arxiv.org/abs/2011.08891: gradient times activation, place by place. Then ReLU,
min-max scaling per image, bilinear resizing, and scaling again; the strength of a map is lost.

Behind the last stage of :class:`PreActResNet18` without its final norm there are only an average
and a linear head, so the gradient is a weight of the head and :func:`closed_form` needs no backward
pass. Everything else goes through grad-cam, with the graph cut at the layer. What else differs from
calling grad-cam: networks in bfloat16 work, the activation is kept before a later operation changes
it in place, the network is left as it was, also after an error, and errors are raised (its ``with``
block swallows an IndexError).

Before its pooling this network has no BN-ReLU, so half of the values at "layer4" are negative,
which Grad-CAM++ does not expect: its denominator can become small or negative.
"""

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam import GradCAMPlusPlus, HiResCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F

from rmlib import UserError
from rmlib.evaluate import logits_of
from rmlib.measuring import as_pixels, with_gradients
from rmlib.models import PreActResNet18
from rmlib.params import nearest

LIBRARY = {"gradcam++": GradCAMPlusPlus, "hirescam": HiResCAM}  # method -> grad-cam's class
EPS = 1e-6  # of grad-cam, in the denominator of the weights
IDENTITY = f"grad-cam {version('grad-cam')}"  # whose maps these are, in records
PURPOSE = "images of the maps"  # of the stream that draws the images in figures


def maps(
    model,
    images: torch.Tensor,
    classes: torch.Tensor,
    layer: str = "layer4",
    *,
    method: str = "gradcam++",
    enlarged: bool = True,
    batch_size: int = 100,
) -> torch.Tensor:
    """Where a network finds evidence for a class, at the output of one of its modules.

    Args:
        model: an nn.Module with parameters that returns logits (N, classes) for images in [0, 1];
            float32, float64 or bfloat16.
        images: (N, C, H, W) uint8, or floating point in [0, 1].
        classes: (N,) int64, the class that each map explains.
        layer: name of a module whose output is (N, K, h, w), such as "layer4" or "layer3.1".
        method: "gradcam++" or "hirescam".
        enlarged: to the size of the images; else the grid points of the layer, (N, h, w).
        batch_size: images per pass.

    Returns:
        (N, H, W) float32 on the CPU, 0 to 1 in every map. A map without positive evidence is 0
        everywhere; so is, by the scaling, one that is the same everywhere.

    Raises:
        UserError: unknown layer, method or class, a layer whose output is not a stack of maps,
            images outside [0, 1].
    """
    pixels = as_pixels(model, images, classes, kinds=(torch.float32, torch.float64, torch.bfloat16))
    modules = {name: module for name, module in model.named_modules() if name}
    if layer not in modules:
        shallow = [name for name in modules if name.count(".") < 2]
        raise UserError(f"layer={layer!r}: {nearest(layer, shallow)}")
    if method not in LIBRARY:
        raise UserError(f"method={method!r}: {nearest(method, LIBRARY)}")
    module, head, parameter = modules[layer], head_behind(model, layer), next(model.parameters())
    batches = [
        (batch.to(parameter), some.to(parameter.device))
        for batch, some in zip(pixels.split(batch_size), classes.split(batch_size))
    ]
    with with_gradients(model):
        _check(model, module, batches[0][0][:1], classes, layer)
        if head is None:
            return _through_library(model, module, batches, method, enlarged)
        size = pixels.shape[2:] if enlarged else None
        found = []
        for batch, some in batches:
            activations, _ = forward_to(model, module, batch)
            grids = closed_form(activations, head.weight[some].detach(), method)
            found.append(enlarge(grids, size).float().cpu())
        return torch.cat(found)


def head_behind(model, layer: str) -> torch.nn.Linear | None:
    """The linear head, where only an average lies between a layer's output and it."""
    plain = type(model) is PreActResNet18 and model.final_bn is None
    return model.linear if plain and layer in ("layer4", "layer4.1") else None


def closed_form(
    activations: torch.Tensor, weights: torch.Tensor, method: str = "gradcam++", eps: float = EPS
) -> torch.Tensor:
    """The map behind which there are only an average and a linear head, before any scaling.

    The gradient of the logit is the weight over the number of grid points, the same at each.
    HiResCAM, Grad-CAM and CAM are then the same. Grad-CAM++ weights channel k with relu(w_k) / (2 +
    w_k mean(A_k) + eps / g_k^2), where g_k is that gradient.

    Args:
        activations: (N, K, h, w) of the layer, any floating type; computed in float32 at least.
        weights: (N, K), the head's weights for the class of each image.
        eps: in the denominator of Grad-CAM++, next to 2 g^2; grad-cam has 1e-6, the paper 0. A
            denominator of exactly 0 counts as 1.

    Returns:
        (N, h, w), not negative.
    """
    kind = torch.promote_types(activations.dtype, torch.float32)
    values, weights = activations.to(kind), weights.to(kind)
    if method == "gradcam++":
        points = values.shape[2] * values.shape[3]
        gradient = weights / points
        square = gradient * gradient
        denominator = 2 * square + values.sum((2, 3)) * (square * gradient) + eps
        denominator = torch.where(denominator != 0, denominator, 1)
        alpha = torch.where(gradient != 0, square / denominator, 0)
        weights = points * alpha * gradient.clamp(min=0)
    return torch.einsum("nk,nkhw->nhw", weights, values).clamp(min=0)


def enlarge(grids: torch.Tensor, size=None) -> torch.Tensor:
    """Maps (N, h, w) scaled to 0..1 each; with a size (H, W) enlarged and scaled again."""
    grids = _scaled(grids)
    if size is None:
        return grids
    grids = F.interpolate(grids[:, None], tuple(size), mode="bilinear", align_corners=False)
    return _scaled(grids[:, 0])


def _scaled(values):
    values = values - values.amin((1, 2), keepdim=True)
    return values / (1e-7 + values.amax((1, 2), keepdim=True))


@torch.no_grad()
def forward_to(model, module, pixels: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The output of a module and the logits, from one forward pass; the hook is gone afterwards."""
    outputs = []
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        logits = logits_of(model, pixels)
    finally:
        hook.remove()
    return (outputs[0] if outputs else None), logits


def _cut(_, __, output):
    # what comes before the layer is a constant; the copy may be changed in place
    return output.detach().requires_grad_().clone()


def _as_float(values):
    # numpy has no bfloat16; a copy, because a later operation may change the activation in place
    return values.detach().to(torch.promote_types(values.dtype, torch.float32), copy=True)


def _through_library(model, module, batches, method, enlarged):
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hook, explainer, found = module.register_forward_hook(_cut), None, []
    try:
        model.requires_grad_(False)
        explainer = LIBRARY[method](model, [module], reshape_transform=_as_float)
        if not enlarged:  # the size that it enlarges to: that of the activation
            explainer.get_target_width_height = lambda _: tuple(
                explainer.activations_and_grads.activations[0].shape[:1:-1]
            )
        for pixels, classes in batches:
            targets = [ClassifierOutputTarget(int(target)) for target in classes]
            found.append(torch.from_numpy(np.asarray(explainer(pixels, targets), dtype=np.float32)))
    finally:
        hook.remove()
        if explainer is not None:
            explainer.activations_and_grads.release()
        for parameter in trainable:
            parameter.requires_grad_()
    return torch.cat(found)


def _check(model, module, image, classes, layer):
    output, logits = forward_to(model, module, image)
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) != 4:
        got = shape or "nothing"
        raise UserError(f"layer={layer!r} gives {got}: a map needs an output (N, K, h, w)")
    largest, count = int(classes.max()), logits.shape[1]
    if largest >= count:
        raise UserError(f"class {largest} cannot be explained: the network has {count} classes")
