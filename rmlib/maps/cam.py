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

import numpy as np
import torch
from pytorch_grad_cam import GradCAMPlusPlus, HiResCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F

from rmlib import UserError, checked
from rmlib.measuring import as_pixels, check_classes, first_logits, with_gradients
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
    reshape=None,
) -> torch.Tensor:
    """Where a network finds evidence for a class, at the output of one of its modules.

    Args:
        model: an nn.Module with parameters that returns logits (N, classes) for images in [0, 1];
            float32, float64 or bfloat16.
        images: (N, C, H, W) uint8, or floating point in [0, 1].
        classes: (N,) int64, the class that each map explains.
        layer: name of a module whose output is (N, K, h, w), such as "layer4" or "layer3.1". It is
            called once in a forward pass, and reaches the logits.
        method: "gradcam++" or "hirescam".
        enlarged: to the size of the images; else the grid points of the layer, (N, h, w).
        batch_size: images per pass.
        reshape: function from the layer's output to (N, K, h, w), for one of another shape, such as
            tokens (N, 1 + h w, K): ``lambda t: t[:, 1:].mT.unflatten(2, (h, w))``. It moves values
            or leaves some out, since the gradient goes through it, too: the ``reshape_transform``
            of grad-cam.

    Returns:
        (N, H, W) float32 on the CPU, 0 to 1 in every map, less where grad-cam's 1e-7 in the scaling
        weighs. A map without positive evidence, or the same everywhere, is 0.

    Raises:
        UserError: unknown layer, method or class, a layer that no map can be made of, other images.
    """
    pixels = as_pixels(model, images, classes, kinds=(torch.float32, torch.float64, torch.bfloat16))
    module = _named(model, layer)
    if method not in tuple(LIBRARY):
        raise UserError(f"method={method!r}: {nearest(method, LIBRARY)}")
    batch_size = checked("batch_size", batch_size, 1, 1e9, int)
    head = head_behind(model, layer) if reshape is None else None
    parameter = next(model.parameters())
    # copies, whatever the network does to its input
    batches = [
        (batch.to(parameter, copy=True), some.to(parameter.device))
        for batch, some in zip(pixels.split(batch_size), classes.split(batch_size))
    ]
    with with_gradients(model):
        values, slope = _probed(model, layer, module, batches[0][0][:1].clone(), classes, reshape)
        if method == "hirescam":
            _check_sum(layer, values * slope)
        if head is None:
            return _through_library(model, module, batches, method, enlarged, reshape)
        size = pixels.shape[2:] if enlarged else None
        found = []
        for batch, some in batches:
            activations = _output(model, module, batch)
            grids = closed_form(activations, head.weight[some].detach(), method)
            found.append(enlarge(grids, size).float().cpu())
        return torch.cat(found)


def _named(model, layer):
    """The module of a name, also of a second one."""
    modules = dict(model.named_modules(remove_duplicate=False))
    del modules[""]
    if not isinstance(layer, str):
        name = next((f", here {name!r}" for name, each in modules.items() if each is layer), "")
        raise UserError(f"layer is a {type(layer).__name__}: expected the name of one module{name}")
    if layer not in modules:
        shallow = [name for name in modules if name.count(".") < 2]
        raise UserError(f"layer={layer!r}: {nearest(layer, shallow)}")
    if isinstance(modules[layer], torch.jit.ScriptModule):
        raise UserError("a map needs hooks, which TorchScript has not: give the network itself")
    return modules[layer]


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
def _output(model, module, pixels):
    """What a module returns for images."""
    outputs = []
    with module.register_forward_hook(lambda _, __, output: outputs.append(output)):
        model(pixels)
    return outputs[0]


def _cut(_, __, output):
    # what comes before the layer is a constant; the copy may be changed in place
    return output.detach().requires_grad_().clone()


def _as_float(values):
    # numpy has no bfloat16; a copy, because a later operation may change the activation in place
    return values.detach().to(torch.promote_types(values.dtype, torch.float32), copy=True)


def _through_library(model, module, batches, method, enlarged, reshape):
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    explainer, found = None, []
    with module.register_forward_hook(_cut):
        try:
            model.requires_grad_(False)
            stack = _as_float if reshape is None else lambda values: _as_float(reshape(values))
            explainer = LIBRARY[method](model, [module], reshape_transform=stack)
            if not enlarged:  # the size that it enlarges to: that of the activation
                explainer.get_target_width_height = lambda _: tuple(
                    explainer.activations_and_grads.activations[0].shape[:1:-1]
                )
            for pixels, classes in batches:
                targets = [ClassifierOutputTarget(int(target)) for target in classes]
                grids = np.asarray(explainer(pixels, targets), dtype=np.float32)
                found.append(torch.from_numpy(grids))
        finally:
            if explainer is not None:
                explainer.activations_and_grads.release()
            for parameter in trainable:
                parameter.requires_grad_()
    return torch.cat(found)


def _probed(model, layer, module, image, classes, reshape):
    """Activation and gradient of one image; refuses a layer that no map can be made of."""
    outputs = []

    def cut(_, __, output):
        floats = isinstance(output, torch.Tensor) and output.is_floating_point()
        outputs.append(output.detach().requires_grad_() if floats else output)
        return outputs[-1].clone() if floats else output

    with module.register_forward_hook(cut):
        logits = first_logits(model, image)
    check_classes(logits, classes, "explained")
    inside = layer.rpartition(".")[0]
    remedy = f"take the module around it, {inside!r}" if inside else "take another module"
    if len(outputs) != 1:
        times = f"{len(outputs)} times in a forward pass, a map needs one call"
        raise UserError(f"layer={layer!r} is called {times}: {remedy}")
    _check_stack(layer, outputs[0], image, reshape)
    logit, gradient = logits[0, int(classes[0])], None
    if logit.requires_grad:
        (gradient,) = torch.autograd.grad(logit, outputs, allow_unused=True)
    if gradient is None:
        raise UserError(f"layer={layer!r} does not reach the logits: {remedy}")
    if reshape is None:
        return outputs[0], gradient
    kept = reshape(gradient)
    if gradient.any() and not kept.any():
        reason = "the logits depend on nothing that reshape keeps (on the class token alone?)"
        raise UserError(f"layer={layer!r}: {reason}; take a module before the last attention")
    return reshape(outputs[0]), kept


def _check_sum(layer, products):
    """Refuse (N, K, h, w) that add up to nothing over K everywhere, beside their own size."""
    # LayerNorm is blind to the scale of its input, but for its eps
    if products.sum(1).abs().max() < 1e-4 * products.abs().sum(1).max():
        reason = "a normalisation behind it cancels what HiResCAM adds up, but for rounding"
        raise UserError(f"layer={layer!r}: {reason}; take that normalisation, such as .norm1")


def _check_stack(layer, output, image, reshape):
    """Refuse an output that is, after ``reshape``, no stack of maps of one image."""
    needed, got = "a map needs an output (N, K, h, w)", getattr(output, "shape", None)
    if got is None:
        raise UserError(f"layer={layer!r} gives a {type(output).__name__}: {needed}")
    if reshape is not None:
        try:
            got = reshape(output).shape
        except (RuntimeError, IndexError) as error:
            reason = f"{tuple(got)}: {str(error).splitlines()[0]}"
            raise UserError(f"reshape fails on the output of layer={layer!r}, {reason}") from error
    tokens = "; tokens need reshape=lambda t: t[:, 1:].mT.unflatten(2, (h, w))"
    if len(got) != 4 or got[0] != 1:
        remedy = tokens if len(got) == 3 else ""
        raise UserError(f"layer={layer!r} gives {tuple(got)}: {needed}{remedy}")
    (rows, columns), (height, width) = got[2:], image.shape[2:]
    # half as much again, and one more, is what borders can make
    wide = (columns - 1) * height > 1.5 * (rows + 1) * width
    if reshape is None and (wide or (rows - 1) * width > 1.5 * (columns + 1) * height):
        shape = f"{tuple(got)}, and {rows} x {columns} is no map of {height} x {width} pixels"
        remedy = "of (N, h, w, K) reshape=lambda t: t.permute(0, 3, 1, 2) makes one"
        raise UserError(f"layer={layer!r} gives {shape}: {remedy}")
