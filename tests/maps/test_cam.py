"""Maps against grad-cam, on planted detectors, and against careless callers."""

import gc

import numpy as np
import pytest
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from toys import NO_LOGITS, Answering, Pooled

from rmlib import UserError, paths
from rmlib.evaluate import predict, sample
from rmlib.maps import cam, faithfulness, localization
from rmlib.models import preact_resnet18
from rmlib.study.runs import networks


def images(count=6, size=16, seed=0):
    return (
        torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)),
        torch.arange(count) % 3,
    )


@pytest.mark.parametrize("method", ["gradcam++", "hirescam"])
@pytest.mark.parametrize("layer", ["layer4", "layer4.1", "layer3", "layer2.0.conv1"])
def test_maps_are_those_of_grad_cam(method, layer):
    """On a trained network, to 1e-5: in closed form without a backward pass, and through the
    library with the graph cut at the layer.
    """
    folder, record = networks.find(paths.networks_dir(), 1.0)[-1]
    model, test_set = networks.load(folder), networks.images_of(record)
    data = test_set[sample(len(test_set), 400, 0, "some")]
    predicted = predict(model, data.images).argmax(1)
    # its mistakes first
    order = (predicted == data.labels).int().argsort(stable=True)[:40]
    data, predicted = data[order], predicted[order]
    pixels, calls = data.images / 255, []
    explainer = cam.LIBRARY[method](model, [model.get_submodule(layer)])
    for classes in (data.labels, predicted):
        expected = explainer(pixels, [ClassifierOutputTarget(int(c)) for c in classes])
        found = cam.maps(model, pixels, classes, layer, method=method, batch_size=16)
        assert np.abs(found.numpy() - expected).max() < 1e-5 and found.std((1, 2)).median() > 0.05
        calls.append(found)
    assert not torch.equal(*calls), "the true and the predicted class differ somewhere"
    explainer.activations_and_grads.release()


def test_the_last_stage_needs_no_library(monkeypatch):
    """So it is as cheap as a forward pass; with a final norm, behind another head or in another
    network it is not the same, and the library is asked.
    """
    asked = []
    for name, explainer in list(cam.LIBRARY.items()):
        monkeypatch.setitem(
            cam.LIBRARY,
            name,
            lambda *words, explainer=explainer, **more: (
                asked.append(1) or explainer(*words, **more)
            ),
        )
    pixels, classes = images(2, 32)
    plain, normed = preact_resnet18(3, 2), preact_resnet18(3, 2, final_norm=True)
    cam.maps(plain, pixels, classes)
    assert not asked
    for model, layer in ((normed, "layer4"), (plain, "layer3"), (nn.Sequential(plain), "0.layer4")):
        asked.clear()
        cam.maps(model, pixels, classes, layer)
        assert asked, layer


@pytest.mark.parametrize(
    "layer, shape", [("layer4", (4, 6)), ("layer3", (8, 12)), ("layer1", (32, 48))]
)
def test_grid_points_are_what_the_pictures_are_made_of(layer, shape):
    """Through the closed form and through the library, at the resolution of the layer; not square,
    so that no side is taken for the other.
    """
    torch.manual_seed(0)
    model, pixels = preact_resnet18(3, 2).eval(), torch.rand(5, 3, 32, 48)
    for method in ("gradcam++", "hirescam"):
        points = cam.maps(model, pixels, torch.arange(5) % 3, layer, method=method, enlarged=False)
        assert points.shape == (5, *shape) and points.max() <= 1
        assert torch.allclose(
            cam.enlarge(points, (32, 48)),
            cam.maps(model, pixels, torch.arange(5) % 3, layer, method=method),
            atol=1e-5,
        )


def test_bfloat16_networks_work():
    torch.manual_seed(0)
    model = preact_resnet18(3, 8).eval()
    pixels, classes = images(6, 32)
    for layer in ("layer4", "layer3"):
        exact, rough = (
            cam.maps(model.float(), pixels, classes, layer),
            cam.maps(model.bfloat16(), pixels, classes, layer),
        )
        assert rough.dtype == torch.float32 and 0 < (exact - rough).abs().mean() < 0.05
    with pytest.raises(UserError, match="float16"):
        cam.maps(model.half(), pixels, classes)


def test_an_activation_changed_in_place_is_explained_as_it_was():
    """grad-cam keeps a reference on the CPU, so that an in-place operation behind the layer changes
    the map it draws.
    """

    class InPlace(Pooled):
        def forward(self, images):
            features = self.features(images)
            features += 1
            return self.linear(features.relu_().mean((2, 3)))

    class Copied(Pooled):
        def forward(self, images):
            return self.linear((self.features(images) + 1).relu().mean((2, 3)))

    pixels, classes = images()
    assert torch.equal(
        cam.maps(InPlace(), pixels, classes, "features"),
        cam.maps(Copied(), pixels, classes, "features"),
    )


def test_a_planted_detector_points_at_its_object():
    """A network that sees red alone must look at the red square, wherever it lies, and get nearly
    all energy inside.
    """
    model = nn.Sequential()
    model.features = nn.Conv2d(3, 1, 1, bias=False)
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model.features.weight[:] = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
        model.head[2].weight[:] = torch.tensor([[4.0], [-4.0]])
    pixels, masks = torch.zeros(3, 3, 12, 12), torch.zeros(3, 12, 12, dtype=torch.bool)
    for i, (y, x) in enumerate(((0, 0), (3, 6), (8, 2))):
        pixels[i, 0, y : y + 4, x : x + 4] = 1
        masks[i, y : y + 4, x : x + 4] = True
    found = cam.maps(model, pixels, torch.zeros(3, dtype=torch.int64), "features")
    assert torch.equal(found > 0.5, masks) and (localization.energy_inside(found, masks) > 99).all()
    assert torch.equal(
        cam.maps(model, pixels, torch.zeros(3, dtype=torch.int64), "features", method="hirescam")
        > 0.5,
        masks,
    )
    against = cam.maps(model, pixels, torch.ones(3, dtype=torch.int64), "features")
    assert against.max() == 0, "nothing speaks for the other class"


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_batches_do_not_matter(layer):
    torch.manual_seed(1)
    model = preact_resnet18(3, 2).eval()
    pixels, classes = images(7)
    whole = cam.maps(model, pixels, classes, layer)
    single = torch.cat(
        [cam.maps(model, pixels[i : i + 1], classes[i : i + 1], layer) for i in range(7)]
    )
    assert torch.allclose(
        whole, cam.maps(model, pixels, classes, layer, batch_size=3), atol=1e-4
    ) and torch.allclose(whole, single, atol=1e-4)
    assert torch.allclose(
        whole, cam.maps(model, (pixels * 255).round().byte(), classes, layer), atol=0.2
    )


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_finds_everything_as_it_was(fails, layer, monkeypatch):
    torch.manual_seed(0)
    model = preact_resnet18(3, 2).train()
    model.layer1[0].bn1.eval()
    model(torch.rand(4, 3, 16, 16)).sum().backward()
    model.conv1.weight.requires_grad_(False)
    model.layer3.register_forward_hook(own := lambda module, inputs, output: None)
    modes, trainable = (
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )
    gradients = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    if fails:

        def explode(*_, **__):
            raise IndexError("a mistake inside")

        monkeypatch.setattr("pytorch_grad_cam.GradCAMPlusPlus.get_cam_weights", explode)
        monkeypatch.setattr(cam, "closed_form", explode)
        with pytest.raises(
            IndexError, match="a mistake inside"
        ):  # grad-cam's own `with` block would swallow it
            cam.maps(model, *images(), layer)
    else:
        with torch.no_grad():
            cam.maps(model, *images(), layer)
    assert [p.requires_grad for p in model.parameters()] == trainable and list(
        model.layer3._forward_hooks.values()
    ) == [own]
    model.layer3._forward_hooks.clear()
    assert [module.training for module in model.modules()] == modes
    assert all(
        p.grad is gradient and (gradient is None or torch.equal(p.grad, value))
        for p, (gradient, value) in zip(model.parameters(), gradients)
    )
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_frozen_networks_and_inference_mode():
    model = Pooled()
    pixels, classes = images()
    expected = cam.maps(model, pixels, classes, "features")
    with torch.inference_mode():
        assert torch.equal(
            cam.maps(model.requires_grad_(False), pixels.clone(), classes.clone(), "features"),
            expected,
        )


@pytest.mark.parametrize(
    "model, layer",
    [(Pooled(), "features"), (preact_resnet18(3, 2), "layer4"), (preact_resnet18(3, 2), "layer2")],
    ids=["pooled", "closed", "library"],
)
def test_nothing_piles_up(model, layer):
    pixels, classes = images(2)

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    cam.maps(model, pixels, classes, layer)
    before = tensors()
    for _ in range(50):
        cam.maps(model, pixels, classes, layer)
    assert tensors() <= before


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(layer="layer5"), "did you mean 'layer"),
        (dict(layer=""), "layer=''"),
        (dict(model=lambda pixels: pixels), "has no parameters"),
        (dict(method="gradcam"), "did you mean 'gradcam[+][+]'"),
        (
            dict(layer="layer3", classes=torch.tensor([0, 3, 1])),
            "class 3 cannot be explained: the network has 3",
        ),
        (dict(layer="linear"), r"gives \(1, 3\): a map needs"),
        (dict(classes=torch.tensor([0, 3, 1])), "class 3 cannot be explained: the network has 3"),
        (dict(classes=torch.tensor([0, 1])), r"labels \(2,\)"),
        (dict(images=images(3)[0] * 2), "the model normalises them"),
    ],
)
def test_mistakes(change, words):
    pixels, classes = images(3)
    arguments = {"images": pixels, "classes": classes, "layer": "layer4"}
    with pytest.raises(UserError, match=words):
        cam.maps(**{"model": preact_resnet18(3, 2)} | arguments | change)


@pytest.mark.cuda
def test_cuda_is_the_cpu_up_to_rounding():
    torch.manual_seed(0)
    model = preact_resnet18(3, 4).eval()
    pixels, classes = images(12, 32)
    on_cpu = cam.maps(model, pixels, classes, "layer3")
    assert torch.allclose(cam.maps(model.cuda(), pixels, classes, "layer3"), on_cpu, atol=0.02)


@pytest.mark.parametrize("layer", ["net.layer4", "net.conv1"])
def test_a_network_that_returns_no_logits_is_named(layer):
    pixels, classes = images()
    for answer, got in NO_LOGITS.items():
        model, words = Answering(answer), f"the network returns {got}: expected logits"
        if "1, 4" not in got:  # as it is for the single image that maps ask about first
            with pytest.raises(UserError, match=words) as error:
                cam.maps(model, pixels, classes, layer)
            assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=words):
            faithfulness.drop_and_increase(model, pixels, pixels[:, 0], classes)
