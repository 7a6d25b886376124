"""Whether an FGSM number can be believed, from the verdicts of several attacks on single images.

FGSM says little on its own: where a network is sure of itself the gradient of its cross entropy
vanishes, and the attack stands still. So stronger attacks stand beside it, on the same images, and
:func:`check` says what they contradict (after the advice of Carlini et al. 2019,
https://arxiv.org/abs/1902.06705).
"""

import functools

import numpy as np
from scipy.stats import binomtest

from rmlib import UserError
from rmlib.packed import unpack_bits

PURPOSE = (  # of the stream that draws them: a smaller sample is part of a larger one
    "attacked images"
)
# of the one-sided sign test (McNemar's, exact) over images behind a warning; not corrected for the
# number of tests
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
        results: (attack, eps) -> result of :func:`rmlib.robustness.battery.attack`, "fgsm" and at
            least one stronger attack at ``eps`` among them; ("fgsm", "0") gives the clean verdicts.
        total: images of the test set.
        seed: that drew the attacked ones, the same for all: a smaller sample is part of a larger
            one.

    Returns:
        ``zero_gradient``: percent of the images; ``fgsm`` and ``strongest``: percent right after
        FGSM, and after every attack at this eps (the worst case for each image), on the images that
        all but AutoAttack saw; ``warnings``: those of WARNINGS that apply, none where nothing
        contradicts FGSM. A masked gradient that fools the margin and PGD alike is exposed by Square
        only; where Square was not run at this eps the last warning says so.

    Raises:
        UserError: no FGSM or nothing beside it at this eps, or more images than there are.
    """
    seen = {name: results[name, eps] for name in STRONGER if (name, eps) in results}
    if ("fgsm", eps) not in results or not seen:
        raise UserError(
            f"FGSM at eps={eps} cannot be checked: expected 'fgsm' and one of {', '.join(STRONGER)}"
            " at this eps"
        )
    fgsm = results["fgsm", eps]
    if max(result["images"] for result in (fgsm, *seen.values())) > total:
        raise UserError(f"total={total}: expected the number of images of the whole test set")
    from rmlib.evaluate import sample  # torch, which tables without attacks do not need

    if ("fgsm", "0") in results:
        seen["clean"] = results["fgsm", "0"]
    places = {
        name: sample(total, result["images"], seed, PURPOSE).numpy()
        for name, result in {"fgsm": fgsm, **seen}.items()
    }
    right = {
        name: unpack_bits(result["correct"], result["images"])
        for name, result in {"fgsm": fgsm, **seen}.items()
    }

    def pair(first, second):
        """Verdicts of two attacks on the images that both saw."""
        _, one, two = np.intersect1d(
            places[first], places[second], assume_unique=True, return_indices=True
        )
        return right[first][one], right[second][two]

    def only_after(first, second):
        """Images that survive only the first attack, and only the second."""
        a, b = pair(first, second)
        return int((a & ~b).sum()), int((~a & b).sum())

    def leaves_more(first, second):
        """Whether more images survive the first attack than the second, beyond chance."""
        only = only_after(first, second)
        return sum(only) > 0 and binomtest(only[0], sum(only), alternative="greater").pvalue < LEVEL

    many = [name for name in right if name != "autoattack"]
    common = functools.reduce(np.intersect1d, [places[name] for name in many])
    after = {name: right[name][np.isin(places[name], common)] for name in many}
    survivors = np.logical_and.reduce(list(after.values()))
    zero, stronger = (
        fgsm["zero_gradient"] / fgsm["images"],
        [name for name in seen if name != "clean"],
    )
    signs = (
        zero >= NO_GRADIENT,
        "fgsm_margin" in seen and leaves_more("fgsm", "fgsm_margin"),
        "pgd" in seen and leaves_more("pgd", "fgsm"),
        "square" in seen and leaves_more("fgsm", "square"),
        any(leaves_more("fgsm", name) for name in stronger),
    )
    few = not any(signs) and any(
        only_after("fgsm", name)[0] > 0 and sum(only_after("fgsm", name)) < TELLING
        for name in stronger
    )
    warnings = [text for text, found in zip(WARNINGS, (*signs, few, "square" not in seen)) if found]
    return {
        "zero_gradient": 100 * zero,
        "fgsm": 100 * after["fgsm"].mean(),
        "strongest": 100 * survivors.mean(),
        "images": len(common),
        "warnings": warnings,
    }
