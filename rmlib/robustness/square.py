"""The Square attack with an exact budget and a random stream of its own for every image.

Andriushchenko et al. 2020, "Square Attack", https://arxiv.org/abs/1912.00049; Linf, untargeted,
margin loss. It only asks for the network's outputs. Vertical stripes of +-eps come first, then one
square after the other, kept where it lowers the margin.

As in the authors' own code, a budget of n is n evaluations of perturbed images, the stripes being
the first, and every image has squares of its own. AutoAttack's version, and torchattacks' after it,
ask n + 1 times and share the squares of a batch, so that a result depends on the neighbours. What
is ours: stripes, places and signs are a function of the seed and of the image's own pixels.

As in AutoAttack's, the schedule is rescaled from 10 000 steps, its first square is number 0, p_init
is 0.8, and a square that would change nothing is a query, too (the authors draw again). As in all
of them, squares never reach the last row and column (the first place is drawn from 0 .. H - s - 1).
"""

import hashlib
import math
from typing import Any

import numpy as np
import torch

from rmlib import UserError
from rmlib.evaluate import logits_of
from rmlib.measuring import image_keys, margins

P_INIT = 0.8  # share of the image inside the first square
# of 10 000 steps: after each of these the share is halved
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
BLOCK = 100  # squares whose random numbers are made at once
# queries between two looks at which images have fallen; elsewhere 10: a look makes the host wait
SWEEPS = {"cpu": 1}


def side(number: int, budget: int, height: int, width: int) -> int:
    """Side in pixels of square ``number`` (from 0) of a budget, for images of height x width."""
    place = int(number / budget * 10_000)
    share = P_INIT / 2 ** sum(place > last for last in HALVINGS)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def random_words(keys: list[bytes], block: int, count: int) -> torch.Tensor:
    """Uniform integers in 0 .. 2^32 - 1 for every key, (N, count), the same on every machine."""
    drawn = [hashlib.shake_128(key + block.to_bytes(4, "little")).digest(4 * count) for key in keys]
    words = np.frombuffer(b"".join(drawn), "<u4").reshape(len(keys), count)
    return torch.from_numpy(words.astype(np.int64))


class Standing:
    """The images that have not fallen, N of them, and what the attack knows of each.

    ``index``: their places in the batch. ``up`` (N, C, H, W) bool: where the best image so far is
    high; elsewhere it is low. ``best`` (N,): its margin. ``spent`` (N,): queries.
    """

    words: Any = None  # random numbers of a block of squares

    def __init__(self, images, labels, index, eps, seed):
        own = images[index]
        self.index, self.true, self.spent = index, labels[index], torch.zeros_like(index)
        self.low, self.high = (own - eps).clamp(0, 1), (own + eps).clamp(0, 1)
        self.up = torch.zeros_like(own, dtype=torch.bool)
        self.best = torch.full_like(own[:, 0, 0, 0], math.inf)
        self.keys = image_keys(own, seed, "square")

    def keep(self, stay: torch.Tensor) -> None:
        """Keep the images at some places alone."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value[stay])
        self.keys = [self.keys[i] for i in stay.tolist()]

    def proposal(self, query: int, queries: int) -> torch.Tensor:
        """The next images to ask about: where they are high, as ``up``."""
        channels, height, width = self.up.shape[1:]
        device = self.up.device
        if query == 1:
            words = random_words(self.keys, 0, channels * width).to(device)
            return (words >> 31).bool().view(-1, channels, 1, width).expand_as(self.up)
        block, number = divmod(query - 2, BLOCK)
        if number == 0:
            words = random_words(self.keys, 1 + block, BLOCK * (2 + channels)).to(device)
            self.words = words.view(-1, BLOCK, 2 + channels)
        drawn, size = self.words[:, number], side(query - 2, queries, height, width)
        top, left = drawn[:, :1] * (height - size) >> 32, drawn[:, 1:2] * (width - size) >> 32
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        inside_rows = (rows >= top) & (rows < top + size)
        inside_columns = (columns >= left) & (columns < left + size)
        inside = inside_rows[:, None, :, None] & inside_columns[:, None, None]
        return torch.where(inside, (drawn[:, 2:] >> 31).bool()[:, :, None, None], self.up)

    def ask(self, model, query: int, queries: int, batch_size: int) -> None:
        """One query about each image; what lowers its margin is kept."""
        alive, proposal = self.best > 0, self.proposal(query, queries)
        images = torch.where(proposal, self.high, self.low)
        margin = margins_of(model, images, self.true, batch_size)
        # an answer that is no number counts as wrong, as after any attack
        better = alive & ~(margin >= self.best)
        self.up = torch.where(better[:, None, None, None], proposal, self.up)
        self.best = torch.where(better, margin, self.best)
        self.spent += alive


@torch.no_grad()
def margins_of(model, images, labels, batch_size: int) -> torch.Tensor:
    """The :func:`margins` (N,) of a network on images, in batches."""
    batches = zip(images.split(batch_size), labels.split(batch_size))
    return torch.cat([margins(logits_of(model, batch), true) for batch, true in batches])


@torch.no_grad()
def square(
    model,
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    *,
    queries: int = 100,
    batch_size: int = 200,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attack the images that a network has right, until they fall or their queries are used up.

    Arguments are those of :func:`rmlib.robustness.attacks.run`, checked there: a network in eval
    mode, images on its device and of its type.

    Returns:
        The attacked images; whether each is still right, (N,) bool; and its queries, (N,) int64:
        0 where the network was wrong, for a fallen image the query that felled it.

    Raises:
        UserError: logits that are no numbers, for an image as it is.
    """
    found, used = images.clone(), torch.zeros_like(labels)
    clean = margins_of(model, images, labels, batch_size)
    if clean.isnan().any():
        raise UserError("the network returns logits that are not finite for some of the images")
    right = clean > 0
    standing = Standing(images, labels, right.nonzero().flatten(), eps, seed)
    every = SWEEPS.get(images.device.type, 10)
    for query in range(1, queries + 1):
        if not len(standing.index):
            break
        standing.ask(model, query, queries, batch_size)
        alive = standing.best > 0
        if query == queries or query % every == 0 and not alive.all():
            index = standing.index
            found[index] = torch.where(standing.up, standing.high, standing.low)
            used[index], right[index] = standing.spent, alive
            standing.keep(alive.nonzero().flatten())
    return found, right, used
