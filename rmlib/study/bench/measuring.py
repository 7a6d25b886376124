"""Speed of attacks beside torchattacks, and of maps beside a forward pass and grad-cam."""

import copy
from functools import partial

import torch
import torchattacks
from pytorch_grad_cam import GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

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


def _library(attack, images, labels, device):
    """An attack of torchattacks, on every batch."""
    with torch.random.fork_rng():
        for batch, true in zip(images.split(BATCH), labels.split(BATCH)):
            attack(batch.to(device), true.to(device))


def attack_table(device, rounds) -> list[str]:
    """FGSM and Square at eps 8/255, next to torchattacks' with the same budget."""
    count, few, width = ATTACKED[device.type]
    model = _network(10, width, device).to(memory_format=torch.channels_last)
    images = _images(count, 32).to(memory_format=torch.channels_last)
    labels = predict(model, (images * 255).to(torch.uint8)).argmax(1)
    fgsm = torchattacks.FGSM(model, eps=8 / 255)
    square = torchattacks.Square(model, eps=8 / 255, n_queries=100)
    lines = [
        f"| attack, width {width} | images | interleaved calls | s | torchattacks / ours |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, library, size, calls in (
        ("fgsm", fgsm, count, max(5, rounds // 3)),
        ("square", square, few, max(3, rounds // 20)),
    ):
        some, true = images[:size], labels[:size]
        both = {
            "ours": partial(attacks.perturb, model, some, true, name, batch_size=BATCH),
            "theirs": partial(_library, library, some, true, device),
        }
        seconds = interleaved(both, calls, device, warmup=1)
        ours, theirs = seconds["ours"], seconds["theirs"]
        lines.append(f"| {name} | {size} | {calls} | {ours:.3f} | {theirs / ours:.2f} |")
    return lines


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
