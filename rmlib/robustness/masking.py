"""Whether an FGSM number can be believed, from the verdicts of several attacks on single images.

FGSM says little on its own: where a network is sure of itself the gradient of its cross entropy
vanishes, and the attack stands still. :func:`check` compares it with stronger attacks on the same
images, after the advice of Carlini et al. 2019, https://arxiv.org/abs/1902.06705.
"""

import numpy as np
from scipy.stats import binomtest

from rmlib import UserError
from rmlib.packed import unpack_bits

# of the stream that draws the images: a smaller sample is part of a larger one
PURPOSE = "attacked images"
# of the one-sided sign test (McNemar's, exact) over images; not corrected for their number
LEVEL = 0.01
NO_GRADIENT = 0.01  # share of images without a gradient that is worth a warning
TELLING = 7  # images that must differ, all in one direction, before that test can say anything
WARNINGS = (
    "images without gradient",
    "the same step on the margin fools more",
    "20 steps fool fewer than one",
    "Square, without gradients, fools more",
    "overstated",
    "too few images to tell",
    "no attack without gradients",
)
STRONGER = ("fgsm_margin", "pgd", "square", "autoattack")  # attacks that FGSM is checked against


def check(results: dict, eps: str, total: int, seed: int) -> dict:
    """Whether the FGSM number of a network at one size of perturbation can be believed.

    Args:
        results: (attack, eps) -> its result, "fgsm" and at least one of STRONGER at ``eps`` among
            them; ("fgsm", "0") gives the clean verdicts.
        total: images of the test set.
        seed: that drew the attacked ones, the same for all.

    Returns:
        ``zero_gradient``: percent of the images. ``fgsm`` and ``strongest``: percent right after
        FGSM, and after every attack at this eps, on the ``images`` that all but AutoAttack saw.
        ``warnings``: those of WARNINGS that apply, none where nothing contradicts FGSM. Where a
        masked gradient fools the margin and PGD alike, Square alone can show it.

    Raises:
        UserError: no FGSM or no stronger attack at this eps, or more images than there are.
    """
    from rmlib.evaluate import sample  # torch, which tables without attacks do not need

    stronger = [name for name in STRONGER if (name, eps) in results]
    if ("fgsm", eps) not in results or not stronger:
        remedy = f"expected 'fgsm' and one of {', '.join(STRONGER)} at this eps"
        raise UserError(f"FGSM at eps={eps} cannot be checked: {remedy}")
    seen = {name: results[name, eps] for name in ("fgsm", *stronger)}
    if max(result["images"] for result in seen.values()) > total:
        raise UserError(f"total={total}: expected the number of images of the whole test set")
    if ("fgsm", "0") in results:
        seen["clean"] = results["fgsm", "0"]
    # for every image of the test set 1 if right after the attack, else 0; NaN: not attacked
    verdicts = {name: np.full(total, np.nan) for name in seen}
    for name, result in seen.items():
        places = sample(total, result["images"], seed, PURPOSE).numpy()
        verdicts[name][places] = unpack_bits(result["correct"], result["images"])
    # AutoAttack's few images do not shrink the rest
    many = np.stack([each for name, each in verdicts.items() if name != "autoattack"])
    common = many[:, ~np.isnan(many).any(0)]
    zero = seen["fgsm"]["zero_gradient"] / seen["fgsm"]["images"]
    return {
        "zero_gradient": 100 * zero,
        "fgsm": 100 * common[0].mean(),
        "strongest": 100 * common.min(0).mean(),
        "images": common.shape[1],
        "warnings": _warnings(zero, verdicts["fgsm"], {name: verdicts[name] for name in stronger}),
    }


def _warnings(zero, fgsm, others):
    # attack -> images that survive FGSM alone, and that attack alone
    only = {name: _alone(fgsm, each) for name, each in others.items()}
    fools_more = {name: _beyond_chance(*counts) for name, counts in only.items()}
    signs = (
        zero >= NO_GRADIENT,
        fools_more.get("fgsm_margin", False),
        "pgd" in only and _beyond_chance(*reversed(only["pgd"])),
        fools_more.get("square", False),
        any(fools_more.values()),
    )
    few = any(more > 0 and more + fewer < TELLING for more, fewer in only.values())
    found = (*signs, few and not any(signs), "square" not in others)
    return [text for text, applies in zip(WARNINGS, found) if applies]


def _alone(first, second):
    """How many images survive one attack but not the other: the first, the second."""
    return int((first > second).sum()), int((first < second).sum())


def _beyond_chance(more, fewer):
    """Whether one attack leaves more images than another, by those that survive one of them."""
    count = more + fewer
    return count > 0 and binomtest(more, count, alternative="greater").pvalue < LEVEL
