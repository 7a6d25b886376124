"""The Square attack with an exact budget and a random stream of its own for every image.

Andriushchenko et al. 2020, "Square Attack", https://arxiv.org/abs/1912.00049; Linf, untargeted,
margin loss. It only asks for the network's outputs: vertical stripes of +-eps first, then one
square after the other, kept where it lowers the margin.

As in the authors' own code a budget of n is n evaluations of perturbed images, the stripes being
the first, every image has squares of its own, and the queries it took come back; AutoAttack's
version and torchattacks', made from it, ask for n + 1, share the squares of a batch, so that a
result depends on the neighbours, and keep the counts to themselves. What is ours: stripes, places
and signs of an image are a function of the seed and of its own pixels, whatever else is in the
batch, on any machine.

As in AutoAttack's, the schedule is rescaled from 10 000 steps, its first square is number 0, p_init
is 0.8, and a square that would change nothing is a query, too (the authors draw again). As in all
of them, squares never reach the last row and column (the first place is drawn from 0 .. H - s - 1).
"""

import hashlib
import math

import numpy as np
import torch

from rmlib import UserError
from rmlib.measuring import image_keys, margins

P_INIT = 0.8  # share of the image inside the first square
HALVINGS = (
    10,
    50,
    200,
    500,
    1000,
    2000,
    4000,
    6000,
    8000,
)  # of 10 000 steps: after each of these the share is halved
BLOCK = 100  # squares whose random numbers are made at once
SWEEPS = {
    "cpu": 1
    # queries between two looks at which images have fallen; elsewhere 10, because each look makes
    # the host wait
}


def side(number: int, budget: int, height: int, width: int) -> int:
    """Side in pixels of square ``number`` (from 0) of a budget of queries, for images of height x
    width pixels.
    """
    place = int(number / budget * 10_000)
    share = P_INIT / 2 ** sum(place > last for last in HALVINGS)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def random_words(keys: list[bytes], block: int, count: int) -> torch.Tensor:
    """``count`` uniform integers in 0 .. 2^32 - 1 for every key, (N, count) int64, the same on
    every machine.
    """
    drawn = [hashlib.shake_128(key + block.to_bytes(4, "little")).digest(4 * count) for key in keys]
    return torch.from_numpy(
        np.frombuffer(b"".join(drawn), "<u4").reshape(len(keys), count).astype(np.int64)
    )


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
    """Attack the images that the network has right, each until it falls or its queries are used up.

    Args:
        model: a network in eval mode that returns logits (N, classes) for images in [0, 1].
        images: (N, C, H, W) floating point in [0, 1], on the network's device and of its type.
        labels: (N,) int64, there too.
        eps: largest change of a pixel.
        queries: evaluations of perturbed images for each image, at least 1.
        batch_size: images in a forward pass: for speed and memory; it touches the result only
            through rounding.
        seed: of all draws.

    Returns:
        The attacked images (those that the network had wrong are left alone), whether each is still
        right (N,) bool, and its queries (N,) int64: 0 where the network was wrong, for a fallen
        image the query that felled it.

    Raises:
        UserError: logits that are no numbers, for an image as it is.
    """
    (_, channels, height, width), device = images.shape, images.device
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    found, used = images.clone(), torch.zeros_like(labels)
    clean = torch.cat(
        [
            margins(model(part), true)
            for part, true in zip(images.split(batch_size), labels.split(batch_size))
        ]
    )
    if clean.isnan().any():
        raise UserError("the network returns logits that are not finite for some of the images")
    right = clean > 0
    # from here on only images that are still alive, at the places `index` of the batch
    index = right.nonzero().flatten()
    low, high = (images[index] - eps).clamp(0, 1), (images[index] + eps).clamp(0, 1)
    true, spent, own_keys = labels[index], used[index], image_keys(images[index], seed, "square")
    up = torch.zeros_like(
        low, dtype=torch.bool
    )  # where the best image so far is high; elsewhere it is low
    best = torch.full(index.shape, math.inf, dtype=images.dtype, device=device)
    for query in range(1, queries + 1):
        if not len(index):
            break
        number = query - 2  # of the square; the first query asks about the stripes
        if number < 0:
            stripes = (
                (random_words(own_keys, 0, channels * width) >> 31)
                .bool()
                .to(device)
                .view(-1, channels, 1, width)
            )
        else:
            if number % BLOCK == 0:
                words = (
                    random_words(own_keys, 1 + number // BLOCK, BLOCK * (2 + channels))
                    .to(device)
                    .view(-1, BLOCK, 2 + channels)
                )
            drawn, size = words[:, number % BLOCK], side(number, queries, height, width)
            top, left = drawn[:, 0] * (height - size) >> 32, drawn[:, 1] * (width - size) >> 32
            signs = (drawn[:, 2:] >> 31).bool()[:, :, None, None]
        alive = best > 0
        for first in range(0, len(index), batch_size):
            part = slice(first, first + batch_size)
            if number < 0:
                proposal = stripes[part].expand_as(up[part])
            else:
                y, x = top[part, None], left[part, None]
                inside = ((rows >= y) & (rows < y + size))[:, None, :, None] & (
                    (columns >= x) & (columns < x + size)
                )[:, None, None]
                proposal = torch.where(inside, signs[part], up[part])
            margin = margins(model(torch.where(proposal, high[part], low[part])), true[part])
            better = alive[part] & ~(
                margin >= best[part]
            )  # an answer that is no number counts as wrong, as after any attack
            up[part] = torch.where(better[:, None, None, None], proposal, up[part])
            best[part] = torch.where(better, margin, best[part])
        spent += alive
        last, alive = query == queries, best > 0
        if last or query % SWEEPS.get(device.type, 10) == 0 and not alive.all():
            found[index], used[index], right[index] = torch.where(up, high, low), spent, alive
            stay = alive.nonzero().flatten()
            index, low, high, true, spent, up, best = (
                values[stay] for values in (index, low, high, true, spent, up, best)
            )
            own_keys, words = (
                [own_keys[i] for i in stay.tolist()],
                words[stay] if number >= 0 else None,
            )
    return found, right, used
