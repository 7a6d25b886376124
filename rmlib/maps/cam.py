"""Class activation maps: Grad-CAM++ and HiResCAM at any layer, with the caller's network left as it
was.
"""

import base64
import zlib
from importlib.metadata import version

import numpy as np
import torch
from pytorch_grad_cam import GradCAMPlusPlus, HiResCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F

from rmlib import UserError
from rmlib.evaluate import sample
from rmlib.measuring import as_pixels, with_gradients
from rmlib.models import PreActResNet18
from rmlib.params import nearest
from rmlib.study.runs import records
from rmlib.study.runs.records import KEPT

LIBRARY = {"gradcam++": GradCAMPlusPlus, "hirescam": HiResCAM}  # method -> grad-cam's class
EPS = 1e-6  # of grad-cam, in the denominator of the weights
IDENTITY = f"grad-cam {version('grad-cam')}"  # whose maps these are, in records
PURPOSE = "images of the maps"  # of the stream that draws the images in figures


def maps(
    model,
    images: torch.Tensor,
    classes: torch.Tensor | None = None,
    layer: str = "layer4",
    *,
    method: str = "gradcam++",
    cells: bool = False,
    batch_size: int = 100,
) -> torch.Tensor:
    """Where a network finds evidence for a class, at the output of one of its modules.

    "gradcam++": Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063, equation 19, as
    grad-cam computes it: on the logit itself (the paper takes its exponential, which cancels in the
    weights), with eps = 1e-6 in the denominator of the weights, which can weigh as much as squared
    gradients behind a global pooling (:func:`closed_form` takes another eps, notebook 04_cam shows
    what changes). "hirescam": Draelos & Carin 2020, https://arxiv.org/abs/2011.08891: gradient
    times activation, cell by cell. Then ReLU, min-max scaling per image, bilinear resizing, and
    scaling again; the strength of a map is lost.

    Behind the last stage of :class:`PreActResNet18` without its final norm there are only an
    average and a linear head, so the gradient is a weight of the head and no backward pass is
    needed (:func:`closed_form`). Everything else goes through grad-cam, with the graph cut at the
    layer: nothing before it gets a gradient. What else differs from calling grad-cam: networks in
    bfloat16 work, the activation is kept before a later operation changes it in place, modes,
    ``.grad``, ``requires_grad`` and hooks of the network are restored, also after an error, and
    errors are raised (its ``with`` block swallows an IndexError).

    Before its pooling this network has no BN-ReLU, so half of the values at "layer4" are negative,
    which Grad-CAM++ does not expect: its denominator can become small or negative. For images of 32
    x 32 pixels the map there has 4 x 4 cells.

    Args:
        model: an nn.Module with parameters that returns logits (N, classes) for images in [0, 1];
            float32, float64 or bfloat16.
        images: (N, C, H, W) uint8, or floating point in [0, 1].
        classes: (N,) int64, the class that each map explains, such as the true one; None: the one
            that the network predicts.
        layer: name of a module whose output is (N, K, h, w), such as "layer4" or "layer3.1".
        method: "gradcam++" or "hirescam".
        cells: return the cells of the layer, (N, h, w), each map scaled to 0..1, instead of
            pictures.
        batch_size: images per pass.

    Returns:
        (N, H, W) float32 on the CPU, 0 to 1 in every map; a map without any positive evidence is 0
        everywhere, and so is, by the scaling, one that is the same in all cells.

    Raises:
        UserError: unknown layer, method or class, a layer whose output is not a stack of maps,
            images outside [0, 1].
    """
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise UserError(
            f"layer={layer!r}:"
            f" {nearest(layer, [name for name in modules if name and name.count('.') < 2])}"
        )
    if method not in LIBRARY:
        raise UserError(f"method={method!r}: {nearest(method, LIBRARY)}")
    known = torch.zeros(len(images), dtype=torch.int64) if classes is None else classes
    pixels = as_pixels(model, images, known, kinds=(torch.float32, torch.float64, torch.bfloat16))
    head = head_behind(model, layer)
    parameter, size = next(model.parameters()), None if cells else pixels.shape[2:]
    batches = [
        (batch.to(parameter), None if classes is None else some.to(parameter.device))
        for batch, some in zip(pixels.split(batch_size), known.split(batch_size))
    ]
    with with_gradients(model):
        if head is not None:
            return torch.cat(
                [
                    _without_backward(model, modules[layer], head, *batch, method, size)
                    for batch in batches
                ]
            )
        _check_output(model, modules[layer], batches[0][0][:1], int(known.max()), layer)
        return _through_library(model, modules[layer], batches, method, cells)


def head_behind(model, layer: str):
    """The linear head of a network in which only an average lies between a layer's output and that
    head; None for any other.
    """
    plain = (
        type(model) is PreActResNet18
        and model.final_bn is None
        and layer in ("layer4", f"layer4.{len(model.layer4) - 1}")
    )
    return model.linear if plain else None


def closed_form(
    activations: torch.Tensor, weights: torch.Tensor, method: str = "gradcam++", eps: float = EPS
) -> torch.Tensor:
    """The map behind which there are only an average over the cells and a linear head, from one
    forward pass; before any scaling.

    The gradient of the logit is weights / cells in every cell. HiResCAM, Grad-CAM and CAM are then
    the same; Grad-CAM++ weights channel k with relu(w_k) / (2 + w_k mean(A_k) + eps / g_k^2), g_k =
    w_k / cells (equation 19 of its paper for a gradient without variation).

    Args:
        activations: (N, K, h, w) of the layer, any floating type; computed in float32 at least.
        weights: (N, K), the head's weights for the class of each image.
        eps: in the denominator of Grad-CAM++, beside 2 g^2; grad-cam has 1e-6, the paper 0. A
            denominator of exactly 0 counts as 1.

    Returns:
        (N, h, w), not negative.
    """
    kind = torch.promote_types(activations.dtype, torch.float32)
    values, weights = activations.to(kind), weights.to(kind)
    if method == "gradcam++":
        cells = values.shape[2] * values.shape[3]
        gradient = weights / cells
        square = gradient * gradient
        denominator = 2 * square + values.sum((2, 3)) * (square * gradient) + eps
        denominator = torch.where(denominator != 0, denominator, 1)
        alpha = torch.where(gradient != 0, square / denominator, 0)
        weights = cells * alpha * gradient.clamp(min=0)
    return torch.einsum("nk,nkhw->nhw", weights, values).clamp(min=0)


def enlarge(grids: torch.Tensor, size=None) -> torch.Tensor:
    """Maps (N, h, w) as pictures of a size (H, W): scaled to 0..1 each, enlarged bilinearly, scaled
    again, as grad-cam does; without a size, scaled alone.
    """

    def scaled(values):
        values = values - values.amin((1, 2), keepdim=True)
        return values / (1e-7 + values.amax((1, 2), keepdim=True))

    return (
        scaled(grids)
        if size is None
        else scaled(
            F.interpolate(
                scaled(grids)[:, None], size=tuple(size), mode="bilinear", align_corners=False
            )[:, 0]
        )
    )


@torch.no_grad()
def forward_to(model, module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a module and the logits, from one forward pass as the caller has set it up; the
    hook is gone afterwards.
    """
    outputs = []
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        logits = model(pixels)
    finally:
        hook.remove()
    return (outputs[0] if outputs else None), logits


def _without_backward(model, module, head, pixels, classes, method, size):
    activations, logits = forward_to(model, module, pixels)
    _check_classes(classes, logits)
    with torch.no_grad():
        weights = head.weight[logits.argmax(1) if classes is None else classes]
        return enlarge(closed_form(activations, weights, method), size).float().cpu()


def _through_library(model, module, batches, method, cells):
    def cut(
        _, __, output
    ):  # what comes before the layer is a constant; the copy may be changed in place
        return output.detach().requires_grad_().clone()

    def as_float(
        values,
        # numpy has no bfloat16; a copy, because a later operation may change the activation in
        # place
    ):
        return values.detach().to(torch.promote_types(values.dtype, torch.float32), copy=True)

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hook, explainer, found = module.register_forward_hook(cut), None, []
    try:
        model.requires_grad_(False)
        explainer = LIBRARY[method](model, [module], reshape_transform=as_float)
        if cells:  # the size that it enlarges to: that of the activation
            explainer.get_target_width_height = lambda _: tuple(
                explainer.activations_and_grads.activations[0].shape[:1:-1]
            )
        for pixels, classes in batches:
            targets = (
                [torch.max] * len(pixels)
                if classes is None
                else [ClassifierOutputTarget(int(target)) for target in classes]
            )
            found.append(torch.from_numpy(np.asarray(explainer(pixels, targets), dtype=np.float32)))
    finally:
        hook.remove()
        if explainer is not None:
            explainer.activations_and_grads.release()
        for parameter in trainable:
            parameter.requires_grad_()
    return torch.cat(found)


def _check_output(model, module, image, largest, layer):
    output, logits = forward_to(model, module, image)
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) != 4:
        raise UserError(
            f"layer={layer!r} gives {shape or 'nothing'}: a map needs an output (N, K, h, w)"
        )
    _check_classes(torch.tensor([largest]), logits)


def _check_classes(classes, logits):
    if classes is not None and int(classes.max()) >= logits.shape[1]:
        raise UserError(
            f"class {int(classes.max())} cannot be explained: the network has {logits.shape[1]}"
            " classes"
        )


def keep(folder, model, data, layers: list[str], images: int, seed: int = 0) -> None:
    """Store the maps of the true classes of a few test images beside a run's record, for the time
    when its weights are gone.

    Args:
        folder: of the run, with its weights.
        data: the test set.
        layers: that are explained.
        images, seed: which of them, as in the figures of 04_cam.

    Raises:
        UserError: as :func:`maps`; the folder cannot be written.
    """
    some = data[sample(len(data), images, seed, PURPOSE)]

    def compute():
        stored = {}
        for layer in layers:
            small = (
                (maps(model, some.images, some.labels, layer, cells=True) * 255)
                .round()
                .to(torch.uint8)
            )
            stored[layer] = {
                "cells": list(small.shape[1:]),
                "values": base64.b64encode(zlib.compress(small.numpy().tobytes(), 9)).decode(),
            }
        return {"shape": list(some.images.shape[2:]), "layers": stored}

    what = {
        "measure": KEPT,
        "maps": [f"gradcam++ {layer}" for layer in layers],
        "from": IDENTITY,
        "class": "true",
        "images": len(some),
        "image_seed": seed,
        "checksum": data.checksum,
    }
    records.measure(folder, "cam", what, compute, next(model.parameters()).device.type, save=True)


def kept(folder) -> dict[str, torch.Tensor]:
    """The maps that :func:`keep` stored in a run's folder, enlarged from their cells: layer -> (N,
    H, W) float32 in [0, 1]; nothing stored: {}.

    Raises:
        UserError: the file is damaged or belongs to another run.
    """
    found = records.measurements(folder, "cam")
    stored = [
        row.result
        for row in (found.measurements if found else [])
        if row.settings["measure"] == KEPT
    ]
    return {
        layer: enlarge(
            torch.frombuffer(
                bytearray(zlib.decompress(base64.b64decode(each["values"]))), dtype=torch.uint8
            ).view(-1, *each["cells"])
            / 255,
            result["shape"],
        )
        for result in stored
        for layer, each in result["layers"].items()
    }
