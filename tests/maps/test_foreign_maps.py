"""Maps of other people's networks: against autograd, and what no map can be made of is named."""

import pytest
import torch
from foreign import Tokens, Twice, convolutional, normalised, swin, telling, vit
from torch import nn
from torch.nn import functional as F

from rmlib import UserError
from rmlib.maps import cam, faithfulness


def pixels(count=4, size=32):
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))
    return images, torch.arange(count) % 4


def patches(tokens):
    return tokens[:, 1:].mT.unflatten(2, (4, 4))


def channels_first(values):
    return values.permute(0, 3, 1, 2)


def scaled(grids):
    grids = grids - grids.amin((1, 2), keepdim=True)
    return grids / (1e-7 + grids.amax((1, 2), keepdim=True))


def by_autograd(model, images, classes, layer, method, reshape=None):
    """The definitions, with one whole graph, from the pixels on."""
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(
        # a copy goes on, which may be changed in place
        lambda _, __, output: kept.append(output) or output.clone()
    )
    logits = model(images.clone())
    hook.remove()
    (values,) = kept
    (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), values)
    if reshape is not None:
        values, slope = reshape(values), reshape(slope)
    weights = slope
    if method == "gradcam++":
        below = 2 * slope**2 + values.sum((2, 3), keepdim=True) * slope**3 + 1e-6
        alpha = torch.where(slope != 0, slope**2 / below, 0)
        weights = (alpha * slope.clamp(min=0)).sum((2, 3), keepdim=True)
    grids = scaled((weights * values).sum(1).clamp(min=0)).detach()
    return scaled(F.interpolate(grids[:, None], images.shape[2:], mode="bilinear")[:, 0])


CASES = [
    (convolutional, "1.layer4", None),
    (convolutional, "1.layer4.1.conv1", None),
    (lambda: convolutional("mobilenet_v3_small"), "1.features.8", None),
    (lambda: telling(Twice()), "second", None),
    (lambda: telling(Twice()), "last", None),
    (vit, "1.encoder.layers.encoder_layer_1.ln_1", patches),
    (lambda: telling(Tokens()), "blocks.1", patches),
    (lambda: telling(Tokens("token")), "blocks.1.norm1", patches),
    (swin, "1.norm", channels_first),
    (swin, "1.permute", None),
]


@pytest.mark.parametrize("method", cam.LIBRARY)
def test_maps_are_those_of_autograd(method):
    for make, layer, reshape in CASES:
        # the resnet has one place for 32 pixels
        model, (images, classes) = make(), pixels(size=64 if make is convolutional else 32)
        found = cam.maps(
            model, images, classes, layer, method=method, batch_size=2, reshape=reshape
        )
        expected = by_autograd(model, images, classes, layer, method, reshape)
        assert torch.allclose(found, expected, atol=1e-4), layer
        assert found.amax() > 0.99 and found.std((1, 2)).amax() > 0.1, f"{layer}: a telling case"


def test_the_map_of_averaged_tokens_is_known():
    """Behind the blocks there are a mean and a linear head: the map is w . A, at every token."""
    images, classes = pixels()
    model = telling(Tokens())
    found = cam.maps(
        model, images, classes, "blocks", method="hirescam", enlarged=False, reshape=patches
    )
    with torch.no_grad():
        tokens = patches(model.forward_features(images))
    evidence = torch.einsum("nk,nkhw->nhw", model.head.weight[classes], tokens).clamp(min=0)
    assert torch.allclose(found, scaled(evidence), atol=1e-4)


def test_the_sanity_check_takes_tokens():
    model, (images, classes) = telling(Tokens("token")), pixels()
    how = dict(method="hirescam", reshape=patches)
    own = cam.maps(model, images, classes, "blocks.1.norm1", **how)
    stages = faithfulness.sanity(model, images, classes, "blocks.1.norm1", **how)
    assert list(stages) == ["head", "blocks", "patch_embed"]
    for (name, found), (_, shuffled) in zip(stages.items(), faithfulness.randomised(model)):
        other = cam.maps(shuffled, images, classes, "blocks.1.norm1", **how)
        expected = faithfulness.correlation(own, other)
        assert torch.equal(found.nan_to_num(9), expected.nan_to_num(9)), name
    assert 0 < torch.cat([*stages.values()]).nan_to_num().abs().max() < 0.999


def test_what_a_normalisation_cancels_is_rounding_noise():
    """LayerNorm does not see the scale of its input, so gradient times activation adds up to 0 at
    every token; scaled from 0 to 1 the rest would look like a map. Grad-CAM++ adds up otherwise.
    """
    images, classes = pixels()
    for make, layer, reshape in (
        (vit, "1.encoder.layers.encoder_layer_0", patches),
        (swin, "1.features.3", channels_first),
    ):
        model = make()
        with pytest.raises(UserError, match="normalisation behind it cancels .* such as .norm1"):
            cam.maps(model, images, classes, layer, method="hirescam", reshape=reshape)
        found = cam.maps(model, images, classes, layer, reshape=reshape)
        expected = by_autograd(model, images, classes, layer, "gradcam++", reshape)
        assert torch.allclose(found, expected, atol=1e-3) and found.std() > 0.1


def test_a_first_layer_that_works_in_place_changes_no_image_of_the_caller():
    images, classes = pixels()
    before, net = images.clone(), convolutional()[1]
    for measure in (
        lambda model: cam.maps(model, images, classes, "1.layer3"),
        lambda model: faithfulness.drop_and_increase(model, images, images[:, 0], classes)[0],
    ):
        assert torch.equal(measure(normalised(net, inplace=True)), measure(normalised(net)))
        assert torch.equal(images, before)


class Attentive(nn.Module):
    """A module that returns a tuple, and one that is a stack of windows."""

    def __init__(self):
        super().__init__()
        self.net, self.pair, self.windows = Twice(), nn.LSTM(8, 8), nn.Conv2d(3, 6, 3)

    def forward(self, images):
        self.pair(images[:, 0, :, :8])
        self.windows(torch.cat([images, images]))
        return self.net(images)


@pytest.mark.parametrize(
    "model, layer, reshape, words",
    [
        (Twice(), "relu", None, "layer='relu' is called 2 times in a forward pass.*take another"),
        (Twice(), "act", None, "layer='act' is called 2 times"),
        (convolutional(), "1.layer4.1.relu", None, "2 times.*the module around it, '1.layer4.1'"),
        (Twice(), "unasked", None, "layer='unasked' is called 0 times"),
        (Twice(), "wasted", None, "layer='wasted' does not reach the logits: take another"),
        (Twice(), "cut", None, "layer='cut' does not reach the logits"),
        (Attentive(), "pair", None, r"layer='pair' gives a tuple: a map needs an output \(N, K,"),
        (Attentive(), "windows", None, r"gives \(2, 6, 30, 30\): a map needs an output \(N, K,"),
        (
            vit(),
            "1.encoder",
            None,
            r"gives \(1, 17, 16\): .* tokens need reshape=lambda t: t\[:, 1",
        ),
        (vit(), "1.encoder", patches, "depend on nothing that reshape keeps.*the class token"),
        (
            vit(),
            "1.encoder",
            lambda t: t.mT.unflatten(2, (4, 4)),
            r"reshape fails on .*\(1, 17, 16",
        ),
        (vit(), "1.encoder", lambda t: t[:, 1:], r"layer='1.encoder' gives \(1, 16, 16\)"),
        (
            swin(),
            "1.norm",
            None,
            r"\(1, 8, 8, 32\), and 8 x 32 is no map of 32 x 32.*permute\(0, 3",
        ),
        (Twice(), ["second"], None, "layer is a list: expected the name of one module$"),
        (Twice(), nn.ReLU(), None, "layer is a ReLU: expected the name of one module$"),
        (CAPTION := Twice(), CAPTION.second, None, "layer is a Conv2d: .* module, here 'second'"),
        (nn.Sequential(Twice(), nn.Linear(4, 1)), "0.second", None, "has one logit.*let it return"),
        (
            nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 4)),
            "0",
            None,
            r"the network fails on images \(1, 3, 32, 32\): .*; of what size are its images",
        ),
        (
            torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))),
            "0",
            None,
            "TorchScript has not: give",
        ),
    ],
)
def test_what_no_map_can_be_made_of_is_named(model, layer, reshape, words):
    for method in cam.LIBRARY:
        with pytest.raises(UserError, match=words) as error:
            cam.maps(model, *pixels(), layer, method=method, reshape=reshape)
        assert "\n" not in str(error.value)
    assert not any(module._forward_hooks for module in model.modules())


def test_proportions_that_borders_explain_are_a_map():
    """Few places, cut borders, and a step that is not the same in both directions."""
    for shape, stride, size in (((3, 5), 1, (8, 20)), ((7, 7), 8, (9, 33)), ((1, 1), 1, (5, 7))):
        model = nn.Sequential(nn.Conv2d(3, 4, shape, stride), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        found = cam.maps(model, torch.rand(2, 3, *size), torch.tensor([0, 1]), "0")
        assert found.shape == (2, *size)


def test_measures_refuse_classes_that_the_network_does_not_know():
    images, classes = pixels()
    for model, words in (
        (Twice(2), "class 3 cannot be explained: the network has 2 classes"),
        (nn.Sequential(Twice(), nn.Linear(4, 1)), "one logit"),
    ):
        with pytest.raises(UserError, match=words):
            faithfulness.curves(model, images, images[:, 0], classes)
