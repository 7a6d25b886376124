"""Speed against public implementations, as ratios of medians of interleaved calls in one run.

Machines differ and are noisy; a ratio of two things measured in turn in one process is what can be
compared.
"""

import copy
import platform
import random
import statistics
import time

import torch
import torchattacks
from pytorch_grad_cam import GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F

from rmlib import mixers
from rmlib.data import ImageSet, Loader
from rmlib.evaluate import predict, sample
from rmlib.maps import cam, faithfulness
from rmlib.models import preact_resnet18
from rmlib.paths import networks_dir
from rmlib.robustness import attacks
from rmlib.robustness.masking import PURPOSE
from rmlib.study.bench.batch import CELLS, batch_rows, plan_rows
from rmlib.study.bench.training import report as training_table
from rmlib.study.names import method_name
from rmlib.study.report.stats import mean_std
from rmlib.study.runs import environment, networks
from rmlib.study.runs.run import pick_device
from rmlib.study.settings import BENCHED

SHAPES = ((128, 3, 32, 32), (128, 3, 64, 64))
MAPPED = {
    "cpu": (64, 64, 8),
    "cuda": (2_000, 500, 64),
}  # images whose maps are made, in batches of, width of the network
ATTACKED = {
    "cpu": (200, 64, 8),
    "cuda": (10_000, 10_000, 64),
}  # images under FGSM, images under Square, width of the network


def interleaved(
    candidates: dict, rounds: int, device: torch.device, warmup: int = 5
) -> dict[str, float]:
    """Median seconds per call of every candidate (name -> function without arguments).

    Every round calls all of them in another order, since what ran before decides what is still in
    the caches.
    """
    times, order, shuffle = (
        {name: [] for name in candidates},
        list(candidates),
        random.Random(0).shuffle,
    )
    for turn in range(warmup + rounds):
        shuffle(order)
        for name in order:
            call = candidates[name]
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def naive_region_mixup(images, labels, k, num_classes):
    """The textbook loop that most code would start with: gather the whole batch for every tile.
    Yardstick and test oracle.
    """
    count, _, height, width = images.shape
    mixed, targets = images.clone(), torch.zeros(count, num_classes, device=images.device)
    one_hot = torch.nn.functional.one_hot(labels, num_classes).float()
    for row in range(k):
        for column in range(k):
            lam, partners = torch.rand(()).item(), torch.randperm(count, device=images.device)
            ys, xs = (
                slice(row * height // k, (row + 1) * height // k),
                slice(column * width // k, (column + 1) * width // k),
            )
            mixed[:, :, ys, xs] = (
                lam * images[:, :, ys, xs] + (1 - lam) * images[partners][:, :, ys, xs]
            )
            targets += (lam * one_hot + (1 - lam) * one_hot[partners]) / k**2
    return mixed, targets


def mixer_rows(device, rounds, compiled=False, num_classes=100):
    """Rows (shape, name, multiple of a clone, compared with, times as fast)."""
    from torchvision.transforms import v2

    rows = []
    for shape in SHAPES:
        images, labels = (
            torch.rand(shape, device=device),
            torch.arange(shape[0], device=device) % num_classes,
        )
        ours = {
            "Mixup": mixers.Mixup(num_classes),
            "CutMix": mixers.CutMix(num_classes),
            "Region Mixup k=2": mixers.RegionMixup(num_classes, 2),
            "Region Mixup k=4": mixers.RegionMixup(num_classes, 4),
        }
        peers = {
            "torchvision v2.MixUp": v2.MixUp(alpha=1.0, num_classes=num_classes),
            "torchvision v2.CutMix": v2.CutMix(alpha=1.0, num_classes=num_classes),
        }
        calls = {"clone": images.clone}
        calls |= {
            name: lambda mix=mix: mix(images, labels) for name, mix in {**ours, **peers}.items()
        }
        calls |= {
            f"naive loop k={k}": lambda k=k: naive_region_mixup(images, labels, k, num_classes)
            for k in (2, 4)
        }
        against = {
            "Mixup": "torchvision v2.MixUp",
            "CutMix": "torchvision v2.CutMix",
            "Region Mixup k=2": "naive loop k=2",
            "Region Mixup k=4": "naive loop k=4",
        }
        if compiled:
            blend = torch.compile(mixers.blend, dynamic=False)
            for k in (2, 4):
                plan = ours[f"Region Mixup k={k}"].draw(shape)
                parts = (plan.boxes.tolist(), plan.lam.to(device), plan.partners.to(device))
                calls[f"compiled blend k={k}"] = lambda parts=parts: blend(images, *parts)
        seconds = interleaved(calls, rounds, device)
        for name in calls:
            peer = against.get(name)
            rows.append(
                (
                    "x".join(map(str, shape)),
                    name,
                    seconds[name] / seconds["clone"],
                    peer,
                    seconds[peer] / seconds[name] if peer else None,
                )
            )
    return rows


def loader_rows(device, rounds):
    """Images per second of our loader and of a DataLoader with torchvision's transforms on PIL
    images, no worker processes.
    """
    from PIL import Image
    from torchvision import transforms

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2560, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(pixels)) % 10
    ours = Loader(ImageSet(pixels, labels, tuple("0123456789"), ""), 128, seed=0, device=device)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=2),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    pil = torch.utils.data.DataLoader(
        [(picture, int(label)) for picture, label in zip(pictures, labels)],
        128,
        shuffle=True,
        collate_fn=lambda batch: (
            torch.stack([transform(picture) for picture, _ in batch]),
            torch.tensor([label for _, label in batch]),
        ),
    )

    def consume(batches):
        for images, _ in batches:
            images.to(device)

    calls = {
        "PIL + DataLoader": lambda: consume(pil),
        "on-device loader": lambda: consume(ours.epoch(0)),
    }
    seconds = interleaved(calls, max(3, rounds // 10), device, warmup=1)
    return [
        (name, len(pixels) / value, seconds["PIL + DataLoader"] / value)
        for name, value in seconds.items()
    ]


class Forwards(torch.nn.Module):
    """A network that notes the size of every batch it is asked about."""

    def __init__(self, model):
        super().__init__()
        self.model, self.asked = model, []
        # torchattacks puts a network that it finds in train mode back into it, and this one with it
        self.eval()

    def forward(self, images):
        self.asked.append(len(images))
        return self.model(images)


def attack_rows(device, rounds):
    """Rows (attack, seconds, what it is compared with, times that) of FGSM and Square through
    ``perturb`` and through torchattacks alone.

    FGSM is compared with a bare forward and gradient of the pixels, Square with bare forwards of
    the batches that it asked about; eps = 0 is the worst case, where no image falls.
    """
    count, few, width = ATTACKED[device.type]
    batch_size = 500  # or all of them
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = preact_resnet18(10, width).to(memory_format=torch.channels_last).eval().to(device)
    labels = predict(model, (images * 255).to(torch.uint8)).argmax(1)
    on_device, true = images.to(device), labels.to(device)

    def forward_and_gradient():
        for pixels, label in zip(on_device.split(batch_size), true.split(batch_size)):
            pixels = pixels.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(pixels), label), pixels)

    def library(attack):
        with torch.random.fork_rng():
            return [
                attack(pixels, label)
                for pixels, label in zip(on_device.split(batch_size), true.split(batch_size))
            ]

    fgsm = torchattacks.FGSM(model, eps=8 / 255)
    bare = "forward + gradient"
    seconds = interleaved(
        {
            bare: forward_and_gradient,
            "FGSM": lambda: attacks.perturb(model, images, labels, "fgsm", batch_size=batch_size),
            "FGSM, torchattacks alone": lambda: library(fgsm),
        },
        max(5, rounds // 3),
        device,
    )
    rows = [
        (name, value, bare, value / seconds[bare])
        for name, value in seconds.items()
        if name != bare
    ]
    images, labels, on_device, true = (values[:few] for values in (images, labels, on_device, true))
    for eps, words in ((8 / 255, "eps 8/255"), (0.0, "no image falls")):
        watched = Forwards(model)
        calls = {
            f"Square, {words}": lambda eps=eps, m=model: attacks.perturb(
                m, images, labels, "square", eps, batch_size=batch_size
            ),
            f"Square, {words}, torchattacks alone": lambda eps=eps, m=model: library(
                torchattacks.Square(m, eps=eps, n_queries=100)
            ),
        }
        asked = {}
        for name, call in calls.items():
            watched.asked = []
            call(m=watched)
            asked[name] = list(watched.asked)

        @torch.no_grad()
        def forwards(sizes):
            for size in sizes:
                model(on_device[:size])

        bare_calls = {
            f"forwards of {name}": lambda sizes=sizes: forwards(sizes)
            for name, sizes in asked.items()
        }
        seconds = interleaved(calls | bare_calls, max(3, rounds // 20), device, warmup=1)
        rows += [
            (
                name,
                seconds[name],
                f"{sum(asked[name]) / few:.0f} bare forwards per image",
                seconds[name] / seconds[f"forwards of {name}"],
            )
            for name in calls
        ]
    return rows


def agreement_rows(device, seeds: int = 20, queries: int = 100):
    """Our Square beside torchattacks' on the networks that come with the project, 200 images each:
    rows (network, attack, mean success in percent of the images that were right, its standard
    deviation over seeds, verdicts that flip between batches of 200 and of 32).
    """
    rows = []
    for folder, record in networks.find(networks_dir(), 1.0):
        test_set = networks.images_of(record)
        data, model = (
            test_set[sample(len(test_set), 200, 0, PURPOSE)],
            networks.load(folder).to(device),
        )
        for attack in ("square", "square_torchattacks"):
            outcomes = [
                attacks.run(model, data.images, data.labels, attack, queries=queries, seed=seed)
                for seed in range(seeds)
            ]
            success = [
                100 * (1 - int(each.after.sum()) / int(each.before.sum())) for each in outcomes
            ]
            small = attacks.run(
                model, data.images, data.labels, attack, queries=queries, seed=0, batch_size=32
            )
            rows.append(
                (
                    method_name(record.config),
                    attack,
                    *mean_std(success),
                    int((small.after != outcomes[0].after).sum()),
                    len(data),
                )
            )
    return rows


def map_rows(device, rounds):
    """Rows (image size, maps, seconds per 10 000 images, multiple of a bare forward pass, times as
    fast as grad-cam alone).
    """
    count, batch_size, width = MAPPED[device.type]
    rows = []
    for size, classes in ((32, 10), (64, 200)):
        images = torch.rand(
            count, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float32
        ).to(device)
        true = torch.arange(count, device=device) % classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = preact_resnet18(classes, width).eval().to(device)

        @torch.no_grad()
        def forward():
            for pixels in images.split(batch_size):
                model(pixels)

        def library(explainer):
            for pixels, labels in zip(images.split(batch_size), true.split(batch_size)):
                explainer(pixels, [ClassifierOutputTarget(int(label)) for label in labels])

        calls = {"bare forward": forward}
        for layer in ("layer4", "layer3"):
            own = copy.deepcopy(model)  # an explainer's hooks slow every pass of its network down
            explainer = GradCAMPlusPlus(own, [own.get_submodule(layer)])
            calls[f"ours, {layer}"] = lambda layer=layer: cam.maps(
                model, images, true, layer, batch_size=batch_size
            )
            calls[f"grad-cam, {layer}"] = lambda explainer=explainer: library(explainer)
        seconds = interleaved(calls, max(5, rounds // 6), device, warmup=1)
        for name, value in seconds.items():
            peer = f"grad-cam, {name[-6:]}" if name.startswith("ours") else None
            rows.append(
                (
                    size,
                    name,
                    value * 10_000 / count,
                    value / seconds["bare forward"],
                    seconds[peer] / value if peer else None,
                )
            )
        few = min(count, 16)
        grids = cam.maps(model, images[:few], true[:few])
        value = (
            interleaved(
                {"ROAD": lambda: faithfulness.road(model, images[:few], grids, true[:few])},
                3,
                device,
                warmup=1,
            )["ROAD"]
            / few
        )
        rows.append(
            (
                size,
                "ROAD of a map, layer4",
                value * 10_000,
                value * count / seconds["bare forward"],
                None,
            )
        )
    return rows


def mixer_table(device, rounds, compiled):
    """Mixing as multiples of a copy of the batch, beside torchvision and the textbook loop."""
    lines = ["| batch | mixing | times a clone | times as fast as | |", "|---|---|---:|---:|---|"]
    for shape, name, clones, peer, faster in mixer_rows(device, rounds, compiled):
        lines.append(
            f"| {shape} | {name} | {clones:.2f} | {f'{faster:.2f}' if faster else ''} |"
            f" {peer or ''} |"
        )
    return lines


def loader_table(device, rounds):
    """The loader beside PIL and a DataLoader."""
    lines = [
        "| loader, 2560 images of 32 x 32, batch 128 | images/s | times the PIL loader |",
        "|---|---:|---:|",
    ]
    return lines + [
        f"| {name} | {rate:.0f} | {ratio:.2f} |"
        for name, rate, ratio in loader_rows(device, rounds)
    ]


def attack_table(device, rounds):
    """FGSM and Square as multiples of the passes of the network that they need."""
    count, few, width = ATTACKED[device.type]
    lines = [
        (
            f"| attack, width {width}, {count} images (FGSM) and {few} (Square), medians of"
            f" {max(5, rounds // 3)} (FGSM) and {max(3, rounds // 20)} interleaved calls | s |"
            " times | bare forwards' share |"
        ),
        "|---|---:|---|---:|",
    ]
    return lines + [
        f"| {name} | {value:.3f} | {ratio:.2f} x {bare} | {1 / ratio:.2f} |"
        for name, value, bare, ratio in attack_rows(device, rounds)
    ]


def map_table(device, rounds):
    """Grad-CAM++ as multiples of a forward pass, beside grad-cam, and the cost of a map's ROAD."""
    count, batch_size, width = MAPPED[device.type]
    lines = [
        (
            f"| Grad-CAM++, width {width}, {count} images in batches of {batch_size}, medians of"
            f" {max(5, rounds // 6)} interleaved calls | pixels | s per 10 000 images | times a"
            " forward | times as fast as grad-cam |"
        ),
        "|---|---:|---:|---:|---:|",
    ]
    return lines + [
        f"| {name} | {size} x {size} | {seconds:.1f} | {forwards:.2f} |"
        f" {f'{faster:.2f}' if faster else ''} |"
        for size, name, seconds, forwards, faster in map_rows(device, rounds)
    ]


def agreement_table(device, seeds):
    """Our Square and torchattacks' on the same networks."""
    lines = [
        (
            "| network of `results/quick` | Square, eps 8/255, 100 queries | success (%), mean ±"
            f" sd over {seeds} seeds | verdicts that flip between batches of 200 and 32 |"
        ),
        "|---|---|---:|---:|",
    ]
    return lines + [
        f"| {name} | {attack} | {mean:.1f} ± {std:.1f} | {flips} of {total} |"
        for name, attack, mean, std, flips, total in agreement_rows(device, seeds)
    ]


def batch_table(rounds):
    lines = [
        (
            f"| {CELLS} cells of notebook 02, one thread each, medians of {rounds} in turn | s |"
            " own work of a notebook, s | batch and kernel, s per cell | times as fast as one"
            " worker |"
        ),
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {seconds:.1f} | {own:.1f} | {beside:.2f} | {ratio:.2f} |"
        for name, seconds, own, beside, ratio in batch_rows(rounds)
    ]
    lines += ["", "| whole command, once | records | s |", "|---|---:|---:|"] + [
        f"| {name} | {count} | {seconds:.1f} |" for name, count, seconds in plan_rows()
    ]
    return lines


def bench(
    device: str = "cpu",
    rounds: int = 60,
    compiled: bool = False,
    seeds: int = 20,
    only=BENCHED,
    width: int | None = None,
) -> str:
    """Measure and return the Markdown tables; one CPU thread.

    Args:
        rounds: interleaved calls behind a median; of the training a tenth as many epochs, at least
            3.
        compiled: also the compiled blend and the compiled step.
        seeds: of the comparison of two Squares.
        only: which of BENCHED.
        width: of the network that is trained; default 64 on CUDA, 8 on the CPU.
    """
    device, threads = pick_device(device), torch.get_num_threads()
    make = {
        "mixers": lambda: mixer_table(device, rounds, compiled),
        "loader": lambda: loader_table(device, rounds),
        "training": lambda: [training_table(device, max(3, rounds // 10), width, compiled)],
        "attacks": lambda: attack_table(device, rounds),
        "maps": lambda: map_table(device, rounds),
        "agreement": lambda: agreement_table(device, seeds),
        "batch": lambda: batch_table(max(1, rounds // 30)),
    }
    torch.set_num_threads(1)
    try:
        tables = ["\n".join(make[name]()).rstrip() for name in BENCHED if name in only]
    finally:
        torch.set_num_threads(threads)
    where = environment.environment(device.type)["hardware"]
    head = (
        f"float32 where nothing else is said, one thread, medians of {rounds} interleaved calls;"
        f" {where.get('gpu', where['cpu'])}, torch {torch.__version__}, Python"
        f" {platform.python_version()}"
    )
    return "\n\n".join([head, *tables]) + "\n"
