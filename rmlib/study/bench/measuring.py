"""Speed of attacks and maps, as multiples of the passes of the network that they need."""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torchattacks
from pytorch_grad_cam import GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F

from rmlib.evaluate import predict
from rmlib.maps import cam, faithfulness
from rmlib.models import preact_resnet18
from rmlib.robustness import attacks
from rmlib.study.bench.timing import interleaved

# images under FGSM, images under Square, width of the network
ATTACKED = {"cpu": (200, 64, 8), "cuda": (10_000, 10_000, 64)}
# images whose maps are made, in batches of, width of the network
MAPPED = {"cpu": (64, 64, 8), "cuda": (2_000, 500, 64)}
BATCH = 500  # attacked images at a time


def _network(classes: int, width: int, device):
    """An untrained network, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return preact_resnet18(classes, width).eval().to(device)


def _images(count, size):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _forwards(model, batches):
    for images in batches:
        model(images)


def _gradients(model, batches):
    for images, labels in batches:
        images = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(images), labels), images)


def _library(make, model, batches):
    """An attack of torchattacks, on every batch."""
    with torch.random.fork_rng():
        attack = make(model)
        for images, labels in batches:
            attack(images, labels)


def attack_table(device, rounds) -> list[str]:
    """FGSM and Square through ``perturb`` and through torchattacks alone.

    FGSM is compared with a bare forward and gradient of the pixels, Square with bare forwards of
    the batches that it asks about. At eps = 0 no image falls, the worst case.
    """
    count, few, width = ATTACKED[device.type]
    model = _network(10, width, device).to(memory_format=torch.channels_last)
    images = _images(count, 32).to(memory_format=torch.channels_last)
    labels = predict(model, (images * 255).to(torch.uint8)).argmax(1)
    many, some = max(5, rounds // 3), max(3, rounds // 20)
    rows = _fgsm_rows(model, images, labels, device, many)
    for eps, words in ((8 / 255, "eps 8/255"), (0.0, "no image falls")):
        found = _square_rows(model, images[:few], labels[:few], device, some, eps)
        rows += [(name.replace("Square", f"Square, {words}"), *values) for name, *values in found]
    lines = [
        f"| attack, width {width}, {count} images (FGSM) and {few} (Square), medians of {many}"
        f" (FGSM) and {some} interleaved calls | s | times | bare forwards' share |",
        "|---|---:|---|---:|",
    ]
    for name, s, of, bare in rows:
        lines.append(f"| {name} | {s:.3f} | {s / bare:.2f} x {of} | {bare / s:.2f} |")
    return lines


def _batches(images, labels, device):
    return list(zip(images.to(device).split(BATCH), labels.to(device).split(BATCH)))


def _fgsm_rows(model, images, labels, device, rounds):
    """Rows (attack, seconds, what it is compared with, seconds of that)."""
    batches = _batches(images, labels, device)
    library = partial(torchattacks.FGSM, eps=8 / 255)
    bare = "forward + gradient"
    calls = {
        bare: partial(_gradients, model, batches),
        "FGSM": partial(attacks.perturb, model, images, labels, "fgsm", batch_size=BATCH),
        "FGSM, torchattacks alone": partial(_library, library, model, batches),
    }
    seconds = interleaved(calls, rounds, device)
    return [(name, seconds[name], bare, seconds[bare]) for name in list(calls)[1:]]


def _square_rows(model, images, labels, device, rounds, eps):
    """Rows as of :func:`_fgsm_rows`; the forwards are counted first."""
    batches, pixels = _batches(images, labels, device), images.to(device)
    library = partial(torchattacks.Square, eps=eps, n_queries=100)
    ours = partial(attacks.perturb, model, images, labels, "square", eps, batch_size=BATCH)
    theirs = partial(_library, library, model, batches)
    calls: dict[str, Callable] = {}
    asked: dict[str, list[int]] = {}
    for name, attack in (("Square", ours), ("Square, torchattacks alone", theirs)):
        sizes = asked[name] = []
        note = lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0]))  # noqa: E731
        with model.register_forward_pre_hook(note):
            attack()
        calls[name] = attack
        forwards = [pixels[:size] for size in sizes]
        calls[f"forwards of {name}"] = partial(_forwards, model, forwards)
    seconds = interleaved(calls, rounds, device, warmup=1)
    rows = []
    for name, sizes in asked.items():
        words = f"{sum(sizes) / len(images):.0f} bare forwards per image"
        rows.append((name, seconds[name], words, seconds[f"forwards of {name}"]))
    return rows


def map_table(device, rounds) -> list[str]:
    """Grad-CAM++ as multiples of a forward pass, next to grad-cam, and the cost of a map's ROAD."""
    count, batch_size, width = MAPPED[device.type]
    rounds = max(5, rounds // 6)
    lines = [
        f"| Grad-CAM++, width {width}, {count} images in batches of {batch_size}, medians of"
        f" {rounds} interleaved calls | pixels | s per 10 000 images | times a forward |"
        " times as fast as grad-cam |",
        "|---|---:|---:|---:|---:|",
    ]
    for size, classes in ((32, 10), (64, 200)):
        seconds = _map_seconds(size, classes, device, rounds)
        for name, value in seconds.items():
            times = value / seconds["bare forward"]
            peer = seconds.get(name.replace("ours", "grad-cam")) if "ours" in name else None
            faster = f"{peer / value:.2f}" if peer else ""
            row = f"{size} x {size} | {value * 10_000:.1f} | {times:.2f} | {faster}"
            lines.append(f"| {name} | {row} |")
    return lines


def _map_seconds(size, classes, device, rounds) -> dict[str, float]:
    """Seconds per image."""
    count, batch_size, width = MAPPED[device.type]
    images, true = _images(count, size).to(device), torch.arange(count, device=device) % classes
    batches, model = images.split(batch_size), _network(classes, width, device)

    def library(explainer):
        for pixels, labels in zip(batches, true.split(batch_size)):
            explainer(pixels, [ClassifierOutputTarget(int(label)) for label in labels])

    calls = {"bare forward": partial(_forwards, model, batches)}
    for layer in ("layer4", "layer3"):
        ours = partial(cam.maps, model, images, true, layer, batch_size=batch_size)
        calls[f"ours, {layer}"] = ours
        own = copy.deepcopy(model)  # an explainer's hooks slow every pass of its network down
        explainer = GradCAMPlusPlus(own, [own.get_submodule(layer)])
        calls[f"grad-cam, {layer}"] = partial(library, explainer)
    seconds = interleaved(calls, rounds, device, warmup=1)
    few = min(count, 16)
    grids = cam.maps(model, images[:few], true[:few])
    road = partial(faithfulness.road, model, images[:few], grids, true[:few])
    found = {name: value / count for name, value in seconds.items()}
    road_seconds = interleaved({"ROAD": road}, 3, device, warmup=1)["ROAD"]
    return found | {"ROAD of a map, layer4": road_seconds / few}
