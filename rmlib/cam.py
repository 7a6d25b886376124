"""Class activation maps by Grad-CAM++, through grad-cam, with the caller's network left as it was."""

import base64
import zlib
from importlib.metadata import version

import numpy as np
import torch
from pytorch_grad_cam import GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from rmlib import UserError, records
from rmlib.evaluate import as_pixels, sample, with_gradients
from rmlib.params import nearest

METHOD = f"Grad-CAM++, grad-cam {version('grad-cam')}"
PURPOSE = "images of the maps"  # of the stream that draws the images in figures


def maps(model, images: torch.Tensor, classes: torch.Tensor, layer: str = "layer4", *, batch_size: int = 100) -> torch.Tensor:
    """Where a network finds evidence for a class: Grad-CAM++ at the output of one of its modules.

    Paper: Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063, equation 19, as grad-cam computes it: on the logit
    itself (the paper takes its exponential, which cancels in the weights), with eps = 1e-6 in the denominator of the weights,
    which is not small beside squared gradients behind a global pooling; then ReLU, min-max scaling per image, and
    bilinear resizing. What differs from calling grad-cam: modes, ``.grad`` and hooks of the network are restored, also after
    an error; errors are raised (its ``with`` block swallows an IndexError); frozen parameters and ``no_grad`` do not matter.

    Before its pooling this network has no BN-ReLU, so half of the values at "layer4" are negative, which Grad-CAM++ does not
    expect; and for images of 32 x 32 pixels the map there has 4 x 4 cells. See notebook 04_cam.

    Args:
        model: an nn.Module with parameters that returns logits (N, classes) for images in [0, 1]; float32 or float64.
        images: (N, C, H, W) uint8, or floating point in [0, 1].
        classes: (N,) int64, the class that each map explains: the true one, or the predicted one.
        layer: name of a module whose output is (N, K, h, w), such as "layer4" or "layer3.1".
        batch_size: images per pass.

    Returns:
        (N, H, W) float32 on the CPU, 0 to 1 in every map; a map without any positive evidence is 0 everywhere.

    Raises:
        UserError: unknown layer or class, one whose output is not a stack of maps, images outside [0, 1].
    """
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise UserError(f"layer={layer!r}: {nearest(layer, [name for name in modules if name and name.count('.') < 2])}")
    pixels = as_pixels(model, images, classes)
    parameter = next(model.parameters())
    found = []
    with with_gradients(model):
        _check_output(model, modules[layer], pixels[:1].to(parameter), int(classes.max()), layer)
        method = GradCAMPlusPlus(model, [modules[layer]])
        try:
            for batch, targets in zip(pixels.split(batch_size), classes.split(batch_size)):
                inputs = batch.to(parameter).clone().requires_grad_()  # so that a network with frozen parameters has gradients
                grids = method(inputs, [ClassifierOutputTarget(int(target)) for target in targets])
                found.append(torch.from_numpy(np.asarray(grids, dtype=np.float32)))
        finally:
            method.activations_and_grads.release()
    return torch.cat(found)


@torch.no_grad()
def _check_output(model, module, image, largest, layer):
    shapes = []
    hook = module.register_forward_hook(lambda _, __, output: shapes.append(getattr(output, "shape", ())))
    try:
        logits = model(image)
    finally:
        hook.remove()
    if not shapes or len(shapes[0]) != 4:
        raise UserError(f"layer={layer!r} gives {tuple(shapes[0]) if shapes else 'nothing'}: a map needs an output (N, K, h, w)")
    if largest >= logits.shape[1]:
        raise UserError(f"class {largest} cannot be explained: the network has {logits.shape[1]} classes")


def keep(folder, model, data, layer: str, images: int, seed: int = 0) -> None:
    """Store the maps of the true classes of a few test images beside a run's record, for the time when its weights are gone.

    Args:
        folder: of the run, with its weights. data: the test set. images, seed: which of them, as in the figures of 04_cam.

    Raises:
        UserError: as :func:`maps`; the folder cannot be written.
    """
    some = data[sample(len(data), images, seed, PURPOSE)]

    def compute():
        grids = (maps(model, some.images, some.labels, layer) * 255).round().to(torch.uint8)
        return {"shape": list(grids.shape), "maps": base64.b64encode(zlib.compress(grids.numpy().tobytes(), 9)).decode()}

    what = {"measure": "maps", "method": METHOD, "layer": layer, "class": "true", "images": len(some), "image_seed": seed, "checksum": data.checksum}
    records.measure(folder, "cam", what, compute, next(model.parameters()).device.type, save=True)


def kept(folder) -> dict[str, torch.Tensor]:
    """The maps that :func:`keep` stored in a run's folder: layer -> (N, H, W) float32 in [0, 1], in steps of 1/255; nothing stored: {}.

    Raises:
        UserError: the file is damaged or belongs to another run.
    """
    found = records.measurements(folder, "cam")
    stored = {row.settings["layer"]: row.result for row in (found.measurements if found else []) if row.settings["measure"] == "maps"}
    return {layer: torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(result["maps"]))), dtype=torch.uint8).view(result["shape"]) / 255
            for layer, result in stored.items()}


def energy_inside(grids: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of each map's sum that lies inside the object, in percent: (N,) float64; NaN for an empty map.

    Wang et al. 2020, "Score-CAM", https://arxiv.org/abs/1910.01279, section 4.3 ("energy-based pointing game"). A map that knows
    nothing scores the share of the image that the object covers.

    Args:
        grids: (N, H, W) maps, not negative. masks: (N, H, W) bool, True on the object.

    Raises:
        UserError: different shapes, masks that are not bool.
    """
    if masks.dtype != torch.bool:
        raise UserError(f"masks are {masks.dtype}: expected bool, True on the object")
    if grids.shape != masks.shape:
        raise UserError(f"maps {tuple(grids.shape)} and masks {tuple(masks.shape)} must have the same shape")
    total = grids.double().sum((1, 2))
    return 100 * (grids.double() * masks).sum((1, 2)) / torch.where(total > 0, total, torch.nan)


def object_masks(data) -> torch.Tensor | None:
    """Masks (N, H, W) bool of the objects of an ImageSet: its own, or the insides of its boxes; None if it has neither."""
    if data.masks is not None or data.boxes is None:
        return data.masks
    height, width = data.images.shape[2:]
    x1, y1, x2, y2 = (edge[:, None, None] for edge in data.boxes.unbind(1))
    ys, xs = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    return (x1 <= xs) & (xs < x2) & (y1 <= ys) & (ys < y2)
