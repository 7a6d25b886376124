"""The training loop: :func:`training_step` and :func:`training`, and what they need.

Loss = clean_weight * CE(clean batch) + CE(mixed batch, soft targets). Every mixer gets two forwards
of the same augmented batch, the clean one first, both in train mode: each updates BatchNorm.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rmlib import UserError
from rmlib.choices import Choices, draw
from rmlib.data import ImageSet, Loader, stream
from rmlib.mixers import CutMix, Mixer, Mixup, NoMix, RegionMixup
from rmlib.models import Floats, PreActResNet18, preact_resnet18
from rmlib.params import TrainParams

Maybe = Tensor | None  # None where there is no clean loss


@dataclass
class Run:
    """What a training reads and changes; :func:`make_run` makes one.

    ``network``: the model as a step calls it, perhaps compiled. ``sums``: :func:`totals` of the
    epoch. ``epoch``, ``step``: where the run stands. ``seconds``: spent in steps so far.
    """

    params: TrainParams
    model: PreActResNet18
    optimizer: torch.optim.SGD
    mixer: Mixer
    loader: Loader
    network: Callable[[Tensor], Tensor]
    sums: Tensor
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0

    def crop_flip_mix(self, choices: Choices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images and labels of one step, and the mixed images with their soft targets."""
        choices = choices.to(self.loader.device)
        images, labels = self.loader.batch(choices.order, choices.dy, choices.dx, choices.flip)
        plan = choices.plan(*self.loader.image_shape[1:])
        return images, labels, *self.mixer.apply(images, labels, plan)

    def draw(self, epoch: int) -> Choices:
        """The random choices and learning rates of all steps of an epoch, on the CPU."""
        return draw(self.params, self.loader, self.mixer, epoch)


def training_step(run: Run, choices: Choices) -> None:
    """One step of the paper's protocol, which changes model, optimiser and totals.

    It waits for nothing and takes all that changes from tensors, so that a GPU can replay it.
    """
    images, labels, mixed, targets = run.crop_flip_mix(choices)
    bf16 = run.params.precision == "bf16"
    with torch.autocast(run.loader.device.type, torch.bfloat16, enabled=bf16):
        clean_logits = run.network(images) if run.params.clean_weight else None
        mixed_logits = run.network(mixed)
        loss, *parts = losses(run.params, clean_logits, labels, mixed_logits, targets)
    set_learning_rate(run.optimizer, choices.lr)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.sums += totals(clean_logits, labels, mixed_logits, targets, loss, *parts)


def training(run: Run, recording: Any = None) -> Generator[None, None, None]:
    """Train from where a run stands to the end of its schedule; it may stop at every ``yield``.

    It yields after every step, and once more after every epoch, then with ``run.step`` at 0.
    On a GPU ``recording`` replays :func:`training_step`, see :mod:`rmlib.recorded`.
    """
    choices = None
    while run.epoch < run.params.epochs:
        choices = choices or run.draw(run.epoch)
        run.model.train()
        if run.step == 0:
            run.sums.zero_()
        if recording:
            recording.begin(choices, run.step)
        with busy(run, recording):
            for step in range(run.step, len(run.loader)):
                if recording:
                    recording.replay(step)
                else:
                    training_step(run, choices.row(step, run.loader.size_of(step)))
                run.step = step + 1
                yield
            # a GPU still does the last steps while the next epoch is drawn
            choices = run.draw(run.epoch + 1) if run.epoch + 1 < run.params.epochs else None
        run.epoch, run.step = run.epoch + 1, 0
        yield


@contextlib.contextmanager
def busy(run: Run, recording: Any = None) -> Iterator[None]:
    """Count the seconds until everything within is done, also when the training is stopped."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        if recording:
            recording.wait()
        run.seconds += time.perf_counter() - begun


def losses(
    params: TrainParams, clean_logits: Maybe, labels: Tensor, mixed_logits: Tensor, targets: Tensor
) -> tuple[Tensor, Maybe, Tensor]:
    """(loss, clean loss, mixed loss) of one step, in nats; without a clean term its loss is None.

    Logits and targets are (N, C), labels (N,) int64.
    Paper: Saha & Garain 2024, Algorithm 1; it gives no weight of the clean term, 1 is assumed.
    """
    clean_loss = None
    loss = mixed_loss = F.cross_entropy(mixed_logits, targets)
    if clean_logits is not None and params.clean_weight:
        clean_loss = F.cross_entropy(clean_logits, labels)
        loss = params.clean_weight * clean_loss + mixed_loss
    if params.average:
        loss = loss / (1 + params.clean_weight)
    return loss, clean_loss, mixed_loss


@torch.no_grad()
def totals(
    clean_logits: Maybe, labels: Tensor, mixed_logits: Tensor, targets: Tensor, *losses: Maybe
) -> Tensor:
    """(6,) float64: images, loss, clean loss, clean hits, mixed loss, mixed hits of one step.

    All but the first are weighted with the images. A mixed hit is the weight of the guessed class.
    """
    mixed_hits = targets.gather(1, mixed_logits.argmax(1, keepdim=True)).double().mean()
    clean_hits = nothing = mixed_hits.new_zeros(())
    if clean_logits is not None:
        clean_hits = (clean_logits.argmax(1) == labels).double().mean()
    loss, clean_loss, mixed_loss = (nothing if value is None else value for value in losses)
    means = [nothing + 1, loss, clean_loss, clean_hits, mixed_loss, mixed_hits]
    return torch.stack([value.double() for value in means]) * len(labels)


def set_learning_rate(optimizer: torch.optim.SGD, rate: Tensor) -> None:
    """Set the rate of the next step; in a recorded step it is a tensor and stays on the device."""
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].copy_(rate)
    else:
        group["lr"] = rate.item()


def make_optimizer(params: TrainParams, model: torch.nn.Module) -> torch.optim.SGD:
    """SGD with momentum, without Nesterov, weight decay on all parameters."""
    decay = params.weight_decay
    return torch.optim.SGD(model.parameters(), params.lr, params.momentum, weight_decay=decay)


def make_mixer(params: TrainParams, num_classes: int) -> Mixer:
    """The mixer that the parameters name."""
    if params.mixer == "none":
        return NoMix(num_classes)
    if params.mixer == "mixup":
        return Mixup(num_classes, params.alpha)
    if params.mixer == "cutmix":
        return CutMix(num_classes, params.alpha, params.cutmix_prob)
    names = ("k", "alpha", "regions", "per_sample", "shared_partner", "shared_weight")
    return RegionMixup(num_classes, **{name: getattr(params, name) for name in names})


def make_model(params: TrainParams, num_classes: int, mean: Floats, std: Floats) -> PreActResNet18:
    """The network on the CPU, from the seed's stream; the global random state stays as it is."""
    sizes = num_classes, params.width, params.stem_stride
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(params.seed, "initialisation").initial_seed())
        model = preact_resnet18(*sizes, mean, std, params.final_norm)
    return model.to(memory_format=torch.channels_last)


def check_fits(params: TrainParams, data: ImageSet) -> None:
    """Refuse settings with which these images cannot be trained on.

    BatchNorm needs two values in every channel: a last batch of one image must keep two pixels.
    """
    count, (height, width) = len(data), data.images.shape[2:]
    if params.batch_size > count:
        raise UserError(f"batch_size={params.batch_size}: there are only {count} training images")
    if params.mixer == "region_mixup" and params.k > min(height, width):
        remedy = f"use k <= {min(height, width)}"
        raise UserError(f"k={params.k} tiles do not fit into {height} x {width} pixels: {remedy}")
    # the stages halve the size three times
    if count % params.batch_size == 1 and max(height, width) <= 8 * params.stem_stride:
        alone = f"the last of {count} images would be a batch alone, of one pixel at the end"
        remedy = "BatchNorm cannot be trained on it; use another batch_size or train_images"
        raise UserError(f"batch_size={params.batch_size}: {alone}; {remedy}")


def make_run(params: TrainParams, data: ImageSet, device: str | torch.device = "cpu") -> Run:
    """A new run on the images of a training set, before its first step."""
    check_fits(params, data)
    classes = len(data.classes)
    model = make_model(params, classes, *data.channel_stats()).to(device)
    loader = Loader(data, params.batch_size, params.seed, augment=params.augment, device=device)
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    optimizer, mixer = make_optimizer(params, model), make_mixer(params, classes)
    return Run(params, model, optimizer, mixer, loader, model, sums)
