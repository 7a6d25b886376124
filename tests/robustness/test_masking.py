"""The check that says whether FGSM can be believed."""

import numpy as np
import pytest
import torch
from toys import loud, touchy

from rmlib import UserError
from rmlib.evaluate import sample
from rmlib.packed import pack_bits
from rmlib.robustness import attacks, masking


def four(model, images, labels, eps="8/255"):
    """The attacks that a check needs, on one network."""
    return {
        (name, eps): attacks.evaluate(model, images, labels, name, eps)
        for name in ("fgsm", "fgsm_margin", "pgd", "square")
    }


def test_a_masked_network_is_exposed_and_an_honest_one_is_not():
    model, images, labels = touchy(60)
    honest = masking.check(four(model, images, labels), "8/255", 60, 0)
    assert honest["warnings"] == [] and honest["fgsm"] == honest["strongest"], (
        "on a linear network one step is the best attack"
    )
    masked = masking.check(four(loud(model), images, labels), "8/255", 60, 0)
    assert masked["warnings"] == [
        "images without gradient",
        "the same step on the margin fools more",
        "overstated",
    ]
    assert (
        masked["fgsm"]
        == honest["fgsm"]
        + 100 * four(loud(model), images, labels)["fgsm_margin", "8/255"]["fooled"] / 60
    )
    assert masked["strongest"] == honest["strongest"] and masked["zero_gradient"] == pytest.approx(
        75
    )


def verdicts(bits, zero=0, **more):
    """A result of an attack with these verdicts."""
    bits = torch.tensor(bits, dtype=torch.bool)
    return {"images": len(bits), "correct": pack_bits(bits), "zero_gradient": zero, **more}


def test_one_sign_at_a_time():
    """200 images, of which FGSM leaves the first 100 right; each attack beside it decides about one
    warning.
    """

    def warns(zero=0, **others):
        results = {("fgsm", "8/255"): verdicts([i < 100 for i in range(200)], zero)}
        results |= {
            (name, "8/255"): verdicts([i < left for i in range(200)])
            for name, left in others.items()
        }
        return masking.check(results, "8/255", 200, 0)["warnings"]

    same = {"square": 100}  # an attack without gradients that agrees
    assert warns(fgsm_margin=100, pgd=100, square=150) == []
    assert warns(**same, zero=1) == [] and warns(**same, zero=2) == ["images without gradient"]
    assert warns(**same, fgsm_margin=94) == ["too few images to tell"], (
        "six that differ cannot be told from chance at this level"
    )
    assert warns(**same, fgsm_margin=93) == ["the same step on the margin fools more", "overstated"]
    assert (
        warns(**same, pgd=106) == []
        and warns(**same, pgd=107) == ["20 steps fool fewer than one"]
        and warns(**same, pgd=80) == ["overstated"]
    )
    assert warns(square=97) == ["too few images to tell"] and warns(square=80) == [
        "Square, without gradients, fools more",
        "overstated",
    ]
    assert warns(pgd=100) == ["no attack without gradients"], (
        "where Square was not run, masking may be overlooked"
    )


def test_what_cannot_be_checked_is_said():
    alone = {("fgsm", "8/255"): verdicts([True] * 20)}
    with pytest.raises(UserError, match="FGSM at eps=8/255 cannot be checked"):
        masking.check(alone, "8/255", 20, 0)
    with pytest.raises(UserError, match="FGSM at eps=4/255 cannot be checked"):
        masking.check(alone | {("pgd", "8/255"): verdicts([True] * 20)}, "4/255", 20, 0)
    with pytest.raises(UserError, match="total=10"):
        masking.check(alone | {("pgd", "8/255"): verdicts([True] * 20)}, "8/255", 10, 0)


def test_an_image_wrong_from_the_start_is_no_survivor():
    results = {
        ("fgsm", "8/255"): verdicts([True, True, False]),
        ("pgd", "8/255"): verdicts([True, True, True]),
    }
    assert masking.check(results, "8/255", 3, 0)["strongest"] == pytest.approx(200 / 3)
    assert masking.check(results | {("fgsm", "0"): verdicts([False, True, True])}, "8/255", 3, 0)[
        "strongest"
    ] == pytest.approx(100 / 3)


def test_attacks_on_fewer_images_are_compared_on_those():
    total, few = 100, sample(100, 30, 5, masking.PURPOSE)
    rng = np.random.default_rng(0)
    fgsm, pgd, square = (rng.random(total) < share for share in (0.8, 0.5, 0.7))
    results = {
        ("fgsm", "8/255"): verdicts(fgsm),
        ("pgd", "8/255"): verdicts(pgd[few]),
        ("square", "8/255"): verdicts(square),
        ("fgsm", "4/255"): verdicts(np.ones(total, bool)),
    }
    found = masking.check(results, "8/255", total, 5)
    assert found["images"] == 30 and found["fgsm"] == pytest.approx(100 * fgsm[few].mean())
    assert found["strongest"] == pytest.approx(100 * (fgsm & pgd & square)[few].mean())
    last = results | {("autoattack", "8/255"): verdicts(np.zeros(12, bool))}
    assert masking.check(last, "8/255", total, 5)["images"] == 30, (
        "AutoAttack's few images do not shrink the rest"
    )
