"""Grad-CAM++ behind an average and a linear head, against equation 19 of its paper."""

import pytest
import torch
from torch.nn import functional as F
from toys import Pooled

from rmlib.maps import cam


def closed_form(activations, weights):
    """Equation 19 of the paper for a gradient that is the same in every cell, in float64, with
    grad-cam's eps; no library.
    """
    A, points = activations.double(), activations.shape[2] * activations.shape[3]
    g = weights.double() / points
    alpha = g**2 / (2 * g**2 + A.sum((2, 3)) * g**3 + 1e-6)
    w = points * alpha * g.clamp(min=0)
    return (w[:, :, None, None] * A).sum(1).clamp(min=0)


def enlarged(grids, size):
    def scaled(values):
        values = values - values.amin((1, 2), keepdim=True)
        return values / (1e-7 + values.amax((1, 2), keepdim=True))

    return scaled(
        F.interpolate(scaled(grids)[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    )


def test_closed_form_of_a_pooled_network():
    model = Pooled()
    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(6) % 3
    with torch.no_grad():
        expected = enlarged(
            closed_form(model.features(pixels), model.linear.weight[classes]), (16, 16)
        )
    found = cam.maps(model, pixels, classes, "features")
    assert found.dtype == torch.float32 and torch.allclose(found.double(), expected, atol=1e-4)
    assert found.std((1, 2)).min() > 0.05, (
        "the maps are not flat, so that the comparison says something"
    )


def oracle(activations, weights, eps):
    """Grad-CAM++ by autograd alone, in float64: equation 19 on the gradient of a head that averages
    and multiplies.
    """
    A = activations.double().requires_grad_()
    (A.mean((2, 3)) * weights.double()).sum().backward()
    g, total = A.grad, A.detach().sum((2, 3), keepdim=True)
    alpha = torch.where(g != 0, g**2 / (2 * g**2 + total * g**3 + eps), 0)
    return ((alpha * g.clamp(min=0)).sum((2, 3), keepdim=True) * A.detach()).sum(1).clamp(min=0)


def stacks(seed=0):
    """Activations of every sign in 4 x 3 points, and a head's weights, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    A, w = (
        torch.randn(5, 7, 4, 3, generator=generator, dtype=torch.float64),
        torch.randn(5, 7, generator=generator, dtype=torch.float64),
    )
    return A, torch.where(w.abs() < 0.2, 0, w)


@pytest.mark.parametrize("eps", [1e-6, 0.0, 1e-2])
def test_closed_form_is_equation_19(eps):
    A, w = stacks()
    assert (w == 0).any() and torch.allclose(
        cam.closed_form(A, w, eps=eps), oracle(A, w, eps), rtol=1e-9, atol=0
    )
    hires = (w[:, :, None, None] / 12 * A).sum(1).clamp(min=0)  # gradient times activation
    assert torch.allclose(cam.closed_form(A, w, "hirescam"), 12 * hires), (
        "but for a factor that the scaling takes away"
    )
    assert cam.closed_form(A.bfloat16(), w.bfloat16()).dtype == torch.float32


def test_no_gradient_no_division():
    """A denominator of exactly 0 (possible only without eps, where activations are negative) is no
    infinity.
    """
    A, w = torch.full((1, 1, 2, 2), -2.0), torch.ones(1, 1)
    assert (
        cam.closed_form(A, w, eps=0.0).eq(0).all()
        and cam.closed_form(-A, 0 * w, eps=0.0).eq(0).all()
    )
