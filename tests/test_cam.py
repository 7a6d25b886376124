"""Maps against closed forms on networks small enough to know them, and against careless callers."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rmlib import UserError, cam
from rmlib.data import load
from rmlib.models import preact_resnet18


class Pooled(nn.Module):
    """conv -> features -> average -> linear: behind the features the gradient is the head's weight over the number of cells."""

    def __init__(self, classes=3, channels=5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Conv2d(3, channels, 4, stride=4)
        self.linear = nn.Linear(channels, classes)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, images):
        return self.linear(self.features(images).mean((2, 3)))


def closed_form(activations, weights):
    """Equation 19 of the paper for a gradient that is the same in every cell, in float64, with grad-cam's eps; no library."""
    A, cells = activations.double(), activations.shape[2] * activations.shape[3]
    g = weights.double() / cells
    alpha = g**2 / (2 * g**2 + A.sum((2, 3)) * g**3 + 1e-6)
    w = cells * alpha * g.clamp(min=0)
    return (w[:, :, None, None] * A).sum(1).clamp(min=0)


def enlarged(grids, size):
    def scaled(values):
        values = values - values.amin((1, 2), keepdim=True)
        return values / (1e-7 + values.amax((1, 2), keepdim=True))

    return scaled(F.interpolate(scaled(grids)[:, None], size=size, mode="bilinear", align_corners=False)[:, 0])


def images(count=6, size=16, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 3


def test_closed_form_of_a_pooled_network():
    model = Pooled()
    pixels, classes = images()
    with torch.no_grad():
        expected = enlarged(closed_form(model.features(pixels), model.linear.weight[classes]), (16, 16))
    found = cam.maps(model, pixels, classes, "features")
    assert found.dtype == torch.float32 and torch.allclose(found.double(), expected, atol=1e-4)
    assert found.std((1, 2)).min() > 0.05, "the maps are not flat, so that the comparison says something"


def test_closed_form_of_layer4():
    torch.manual_seed(0)
    model, kept = preact_resnet18(10, 4).eval(), []
    pixels, classes = images(8, 32)
    hook = model.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output.detach()))
    model(pixels)
    hook.remove()
    expected = enlarged(closed_form(kept[0], model.linear.weight.detach()[classes]), (32, 32))
    assert torch.allclose(cam.maps(model, pixels, classes).double(), expected, atol=1e-3)


def test_a_planted_detector_points_at_its_object():
    """A network that sees red alone must look at the red square, wherever it lies, and get nearly all energy inside."""
    model = nn.Sequential()
    model.features = nn.Conv2d(3, 1, 1, bias=False)
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model.features.weight[:] = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
        model.head[2].weight[:] = torch.tensor([[4.0], [-4.0]])
    pixels, masks = torch.zeros(3, 3, 12, 12), torch.zeros(3, 12, 12, dtype=torch.bool)
    for i, (y, x) in enumerate(((0, 0), (3, 6), (8, 2))):
        pixels[i, 0, y:y + 4, x:x + 4] = 1
        masks[i, y:y + 4, x:x + 4] = True
    found = cam.maps(model, pixels, torch.zeros(3, dtype=torch.int64), "features")
    assert torch.equal(found > 0.5, masks) and (cam.energy_inside(found, masks) > 99).all()
    against = cam.maps(model, pixels, torch.ones(3, dtype=torch.int64), "features")
    assert against.max() == 0, "nothing speaks for the other class"


def test_batches_do_not_matter():
    torch.manual_seed(1)
    model = preact_resnet18(3, 2).eval()
    pixels, classes = images(7)
    whole = cam.maps(model, pixels, classes, "layer3")
    single = torch.cat([cam.maps(model, pixels[i:i + 1], classes[i:i + 1], "layer3") for i in range(7)])
    assert torch.allclose(whole, cam.maps(model, pixels, classes, "layer3", batch_size=3), atol=1e-4) and torch.allclose(whole, single, atol=1e-4)
    assert torch.allclose(whole, cam.maps(model, (pixels * 255).round().byte(), classes, "layer3"), atol=0.2)


@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_finds_everything_as_it_was(fails, monkeypatch):
    torch.manual_seed(0)
    model = preact_resnet18(3, 2).train()
    model.layer1[0].bn1.eval()
    model(torch.rand(4, 3, 16, 16)).sum().backward()
    modes = [module.training for module in model.modules()]
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    if fails:
        def explode(*_, **__):
            raise IndexError("a mistake inside")
        monkeypatch.setattr("pytorch_grad_cam.GradCAMPlusPlus.get_cam_weights", explode)
        with pytest.raises(IndexError, match="a mistake inside"):  # grad-cam's own `with` block would swallow it
            cam.maps(model, *images())
    else:
        with torch.no_grad():
            cam.maps(model, *images())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is gradient and torch.equal(p.grad, value) for p, (gradient, value) in zip(model.parameters(), gradients))
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_frozen_networks_and_inference_mode():
    model = Pooled()
    pixels, classes = images()
    expected = cam.maps(model, pixels, classes, "features")
    with torch.inference_mode():
        assert torch.equal(cam.maps(model.requires_grad_(False), pixels.clone(), classes.clone(), "features"), expected)


def test_nothing_piles_up():
    model = Pooled()
    pixels, classes = images(2)

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    cam.maps(model, pixels, classes, "features")
    before = tensors()
    for _ in range(10):
        cam.maps(model, pixels, classes, "features")
    assert tensors() <= before


@pytest.mark.parametrize("change, words", [
    (dict(layer="layer5"), "did you mean 'layer"),
    (dict(layer=""), "layer=''"),
    (dict(layer="linear"), r"gives \(1, 3\): a map needs"),
    (dict(classes=torch.tensor([0, 3, 1])), "class 3 cannot be explained: the network has 3"),
    (dict(classes=torch.tensor([0, 1])), r"labels \(2,\)"),
    (dict(images=images(3)[0] * 2), "normalisation belongs into the model"),
])
def test_mistakes(change, words):
    pixels, classes = images(3)
    arguments = {"images": pixels, "classes": classes, "layer": "layer4"} | change
    with pytest.raises(UserError, match=words):
        cam.maps(preact_resnet18(3, 2), **arguments)


def test_energy_of_known_maps():
    masks = torch.zeros(4, 6, 6, dtype=torch.bool)
    masks[:, :3] = True
    grids = torch.stack([masks[0].float(), torch.ones(6, 6), 1 - masks[0].float(), torch.zeros(6, 6)])
    energy = cam.energy_inside(grids, masks)
    assert energy[:3].tolist() == [100, 50, 0] and energy[3].isnan(), "perfect, uniform, inverted, empty"
    with pytest.raises(UserError, match="expected bool"):
        cam.energy_inside(grids, 255 * masks.byte())
    with pytest.raises(UserError, match="same shape"):
        cam.energy_inside(grids, masks[:2])


def test_objects_are_masks_or_the_insides_of_boxes():
    data = load("shapes", split="test")[torch.arange(0, 2000, 400)]
    assert cam.object_masks(data) is data.masks
    from dataclasses import replace

    boxed = cam.object_masks(replace(data, masks=None))
    x1, y1, x2, y2 = data.boxes[2].tolist()
    assert boxed[2].sum() == (x2 - x1) * (y2 - y1) and boxed[2, y1:y2, x1:x2].all()
    assert (boxed | ~data.masks).all(), "every mask lies in its box"
    assert cam.object_masks(replace(data, masks=None, boxes=None)) is None


@pytest.mark.cuda
def test_cuda_is_the_cpu_up_to_rounding():
    torch.manual_seed(0)
    model = preact_resnet18(3, 4).eval()
    pixels, classes = images(12, 32)
    on_cpu = cam.maps(model, pixels, classes, "layer3")
    assert torch.allclose(cam.maps(model.cuda(), pixels, classes, "layer3"), on_cpu, atol=0.02)
