"""Affine maps, which may take another way to their products, against torch's; and a training against one by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import lowerbound as lb
from lowerbound.data import batches, derive_seed, epoch_order
from lowerbound.nn import Linear, linear
from lowerbound.nn.linear import _there

CPU = torch.device("cpu")
needs_the_other_way = pytest.mark.skipif(not _there(), reason="this processor multiplies by torch's own product alone")


def made(shape=(90, 300), outputs=200, **kind):
    torch.manual_seed(0)
    return torch.randn(*shape, **kind), torch.randn(outputs, shape[-1], **kind), torch.randn(outputs, **kind)


def noise(y):
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1))


def derivatives(function, x, weight, bias, gradient):
    x, weight, bias = (t.clone().requires_grad_() for t in (x, weight, bias))
    y = function(x, weight, bias)
    return y, *torch.autograd.grad(y, (x, weight, bias), gradient(y))


@pytest.mark.parametrize("shape", [(90, 300), (3, 5, 90, 300), (1, 300)])
@pytest.mark.parametrize("gradient", [noise, torch.ones_like, lambda y: torch.ones(()).expand_as(y)])
def test_values_and_gradients_are_those_of_exact_arithmetic(shape, gradient):
    here = derivatives(linear, *made(shape), gradient)
    exact = derivatives(F.linear, *(t.double() for t in made(shape)), lambda y: gradient(y.float()).double())
    for ours, truth in zip(here, exact, strict=True):
        assert ours.shape == truth.shape
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=2e-6 * truth.abs().max().item())


def test_views_of_any_strides_can_be_multiplied():
    x, weight, bias = made()
    y = linear(x.T.contiguous().T, weight.T.contiguous().T, bias)
    torch.testing.assert_close(y, F.linear(x, weight, bias), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(linear(x[:1].expand(90, -1), weight), F.linear(x[:1].expand(90, -1), weight))


def test_gradients_can_be_differentiated_again():
    def penalty(function):
        x, weight, bias = ((0.1 * t).requires_grad_() for t in made())
        y = function(x, weight, bias)
        (slope,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().mean(), (x, weight, bias))

    for ours, theirs in zip(penalty(linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@needs_the_other_way
def test_the_other_way_is_taken_where_it_pays_and_nowhere_else():
    def own(x, weight, bias):
        """Whether it was torch's own product."""
        return linear(x.requires_grad_(), weight, bias).grad_fn.name() == "AddmmBackward0"

    assert not own(*made())
    assert own(*made(dtype=torch.float64))
    assert own(*made((90, 2), 100_000))
    assert own(*made((20, 30)))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*made()).dtype is torch.bfloat16


def test_transforms_of_functions_go_through():
    x, weight, bias = made()
    each = torch.func.vmap(linear, in_dims=(None, 0, None))(x, torch.stack([weight, 2 * weight]), bias)
    torch.testing.assert_close(each[1], F.linear(x, 2 * weight, bias), rtol=1e-5, atol=1e-4)
    slope = torch.func.grad(lambda w: linear(x, w, bias).sum())(weight)
    torch.testing.assert_close(slope, x.sum(0).expand_as(weight), rtol=1e-5, atol=1e-4)


def test_a_layer_begins_and_is_saved_as_torchs_own():
    torch.manual_seed(0)
    ours = Linear(30, 20).state_dict()
    torch.manual_seed(0)
    theirs = nn.Linear(30, 20).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_thirty_updates_are_those_of_a_loop_written_by_hand(digits):
    """The textbook's loop in torch alone, in float64, with the same noise and order, against `train`."""
    torch.manual_seed(0)
    run = lb.recipes.tutorial(digits, latent_dim=20, width=64)
    layers = [m for m in run.vae.modules() if isinstance(m, nn.Linear)]
    e1, e2, head, d1, d2, out = [nn.Linear(m.in_features, m.out_features).double() for m in layers]
    by_hand = [e1, e2, head, d1, d2, out]
    for mine, theirs in zip(by_hand, layers, strict=True):
        mine.load_state_dict(theirs.state_dict())
    optimiser = torch.optim.AdamW([p for m in by_hand for p in m.parameters()], lr=1e-3, weight_decay=0.0)
    order = epoch_order(len(run.data.train), 0, 0)
    stream = itertools.islice(batches(run.data.train, order, 100, CPU), 30)
    losses = []
    for step, batch in enumerate(stream):
        x = batch.x.flatten(1).double()
        torch.manual_seed(derive_seed(0, 1, step))
        eps = torch.randn(100, 20)
        h = F.leaky_relu(e2(F.leaky_relu(e1(x), 0.2)), 0.2)
        mean, log_scale = head(h).chunk(2, -1)
        logits = out(F.leaky_relu(d2(F.leaky_relu(d1(mean + log_scale.exp() * eps), 0.2)), 0.2))
        cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        kl = (0.5 * ((2 * log_scale).exp() + mean.square() - 1) - log_scale).sum(-1)
        optimiser.zero_grad()
        (cross_entropy + kl).mean().backward()
        optimiser.step()
        losses.append((cross_entropy + kl).mean().item())
    steps = itertools.islice(lb.train(run.vae, run.data.train, run.objective, run.training, device=CPU), 30)
    for step, loss in zip(steps, losses, strict=True):
        assert step.terms.loss.mean().item() == pytest.approx(loss, rel=2e-6)
    for mine, theirs in zip(by_hand, layers, strict=True):
        torch.testing.assert_close(theirs.weight.double(), mine.weight, rtol=0, atol=2e-5)
