"""Flows: inverses, log-determinants, masks, and the densities that they carry, against automatic differentiation,
quadrature and torch's own."""

import copy

import pytest
import torch
from oracle import Identity, linear_gaussian
from torch.distributions import MultivariateNormal, kl_divergence

import lowerbound as lb
from lowerbound import flows, spec
from lowerbound.data import generator
from lowerbound.distributions import DiagonalNormal, FullNormal, analytic_kl
from lowerbound.errors import UsageError
from lowerbound.evidence import log_evidence
from lowerbound.heads import Conditional, FlowedNormal
from lowerbound.heads import FullNormal as FullNormalHead
from lowerbound.model import VAE
from lowerbound.priors import StandardNormal

CONTEXT = 3
FLOWS = {
    "coupling-odd": lambda d, c: flows.AffineCoupling(d, 8, keep_even=False, context_dim=c),
    "coupling-even": lambda d, c: flows.AffineCoupling(d, 8, keep_even=True, context_dim=c),
    "autoregressive": lambda d, c: flows.AutoregressiveAffine(d, 8, c),
    "autoregressive-narrow": lambda d, c: flows.AutoregressiveAffine(d, 2, c),
    "inverse": lambda d, c: flows.Inverse(flows.AutoregressiveAffine(d, 8, c)),
    "reversal": lambda d, c: flows.Permutation(d),
    "permutation": lambda d, c: flows.Permutation(d, seed=7),
    "actnorm": lambda d, c: flows.ActNorm(d),
    "real-nvp": lambda d, c: flows.real_nvp(d, 3, 8, c),
    "iaf": lambda d, c: flows.inverse_autoregressive(d, 2, 8, c),
    "maf": lambda d, c: flows.masked_autoregressive(d, 2, 8, c),
    "mixed": lambda d, c: flows.Chain((flows.ActNorm(d), flows.Inverse(flows.real_nvp(d, 2, 8, c)))),
}
DIMS = (1, 2, 5)


def scramble(flow: torch.nn.Module, seed: int = 0, scale: float = 0.6) -> torch.nn.Module:
    """Far from the identity, in float64: every parameter is drawn."""
    draws = generator(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draws))
    return flow.double().eval()


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.verifies(
    lb.flows.ActNorm,
    lb.flows.AffineCoupling,
    lb.flows.AutoregressiveAffine,
    lb.flows.Chain,
    lb.flows.Inverse,
    lb.flows.Permutation,
    lb.flows.inverse_autoregressive,
    lb.flows.masked_autoregressive,
    lb.flows.real_nvp,
    against="autograd",
)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("context_dim", [0, CONTEXT])
@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_inverse_and_log_determinants_are_exact(make, dim, context_dim):
    flow = scramble(make(dim, context_dim))
    z, context = normal(4, dim), normal(4, CONTEXT, seed=2)
    y, log_det = flow(z, context)
    back, log_det_back = flow.inverse(y, context)
    torch.testing.assert_close(back, z, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-9, rtol=1e-9)
    for n in range(4):
        there = torch.autograd.functional.jacobian(lambda v, n=n: flow(v, context[n])[0], z[n])
        torch.testing.assert_close(log_det[n], torch.linalg.slogdet(there).logabsdet, atol=1e-9, rtol=1e-9)
        again = torch.autograd.functional.jacobian(lambda v, n=n: flow.inverse(v, context[n])[0], y[n])
        torch.testing.assert_close(again @ there, torch.eye(dim, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_any_leading_shape_will_do_and_the_context_is_broadcast(make):
    flow = scramble(make(5, CONTEXT))
    z, context = normal(3, 4, 5), normal(4, CONTEXT, seed=2)
    for way in (flow, flow.inverse):
        y, log_det = way(z, context)
        assert (y.shape, log_det.shape) == ((3, 4, 5), (3, 4))
        for k, n in ((0, 0), (2, 3)):
            one, one_det = way(z[k, n], context[n])
            assert one_det.shape == ()
            torch.testing.assert_close(one, y[k, n])
            torch.testing.assert_close(one_det, log_det[k, n])


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_a_flow_takes_the_context_into_account_if_it_says_that_it_takes_one(make):
    flow = scramble(make(5, CONTEXT))
    z = normal(4, 5)
    y, other = flow(z, normal(4, CONTEXT, seed=2))[0], flow(z, normal(4, CONTEXT, seed=3))[0]
    assert torch.equal(y, other) == (flow.context_dim == 0)
    if flow.context_dim:
        with pytest.raises(UsageError, match="was given none"):
            flow(z)


@pytest.mark.parametrize("name", ["coupling-odd", "coupling-even", "autoregressive", "inverse", "iaf", "maf"])
def test_flows_begin_as_the_identity_up_to_the_order(name):
    flow = FLOWS[name](5, CONTEXT)
    z = torch.randn(4, 5)
    y, log_det = flow(z, torch.randn(4, CONTEXT))
    torch.testing.assert_close(y.sort(-1).values, z.sort(-1).values)
    torch.testing.assert_close(log_det, torch.zeros(4))


@pytest.mark.verifies(lb.flows.AutoregressiveAffine, against="autograd")
@pytest.mark.parametrize("width", [1, 3, 64])
@pytest.mark.parametrize("context_dim", [0, CONTEXT])
def test_the_masks_let_nothing_through_that_comes_later_and_everything_before(width, context_dim):
    flow = scramble(flows.AutoregressiveAffine(5, width, context_dim))
    context = normal(CONTEXT, seed=2)

    def both(z: torch.Tensor) -> torch.Tensor:
        return torch.stack(flow.conditioner(z, context))

    seen = torch.autograd.functional.jacobian(both, normal(5)) != 0
    allowed = torch.ones(5, 5).tril(-1).bool()
    assert not (seen & ~allowed).any()
    if width == 64:
        assert (seen == allowed).all()
    if context_dim and width == 64:
        of_context = torch.autograd.functional.jacobian(lambda c: torch.stack(flow.conditioner(normal(5), c)), context)
        assert (of_context != 0).all(), "the first component's parameters too depend on the context"


def test_a_coupling_keeps_what_it_looks_at():
    for keep_even in (True, False):
        flow = scramble(flows.AffineCoupling(5, 16, keep_even))
        z = normal(3, 5)
        kept = torch.arange(5) % 2 == (0 if keep_even else 1)
        y = flow(z)[0]
        assert torch.equal(y[:, kept], z[:, kept])
        assert (y[:, ~kept] != z[:, ~kept]).all()
        seen = torch.autograd.functional.jacobian(lambda v, f=flow: f(v)[0], z[0])[~kept][:, kept]
        assert (seen != 0).all()


def test_the_passes_that_a_flow_says_it_takes_are_those_it_takes(monkeypatch):
    from lowerbound.flows.affine import _Conditioner

    calls = []
    plain = _Conditioner.forward
    monkeypatch.setattr(_Conditioner, "forward", lambda *a: (calls.append(1), plain(*a))[1])
    for make in FLOWS.values():
        flow = make(5, 0)
        for way, said in ((flow, flow.forward_passes), (flow.inverse, flow.inverse_passes)):
            calls.clear()
            way(torch.zeros(1, 5))
            assert len(calls) == said


@pytest.mark.parametrize("turned", [False, True])
def test_actnorm_normalises_its_first_batch_in_training_and_nothing_else(turned):
    layer = flows.ActNorm(3)
    flow = flows.Inverse(layer) if turned else layer
    x = torch.tensor([5.0, -1.0, 0.0]) + torch.tensor([10.0, 0.1, 1.0]) * torch.randn(2, 500, 3)
    flow.eval()
    torch.testing.assert_close(flow(x)[0], x)
    flow.train()
    y, log_det = flow(x)
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.flatten(0, 1).std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert log_det.shape == (2, 500)
    before = copy.deepcopy(layer.state_dict())
    flow(100 * x)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_actnorm_does_not_begin_again_after_loading_or_copying():
    trained = flows.real_nvp(2, 2, 4)
    trained(3 + torch.randn(50, 2))
    for again in (flows.real_nvp(2, 2, 4), copy.deepcopy(trained)):
        again.eval()(torch.randn(5, 2))
        again.load_state_dict(trained.state_dict())
        again.train()(torch.randn(50, 2) * 9)
        assert all(torch.equal(trained.state_dict()[k], v) for k, v in again.state_dict().items())
    # A layer that was ready and is given the weights of one that was not is not ready any more.
    trained.load_state_dict(flows.real_nvp(2, 2, 4).state_dict())
    y, _ = trained(torch.randn(500, 2) * 9)
    torch.testing.assert_close(y.std(0), torch.ones(2), atol=0.01, rtol=0)


def test_actnorm_reads_its_flag_once():
    layer = flows.ActNorm(2)
    layer(torch.randn(50, 2))
    # Reading a tensor without memory fails, as reading one on a device would wait for it.
    layer.initialised = layer.initialised.to("meta")
    layer(torch.randn(50, 2))
    layer.inverse(torch.randn(50, 2))


@pytest.mark.parametrize("points", [1, 4])
def test_actnorm_survives_a_batch_without_spread(points):
    layer = flows.ActNorm(2)
    y, log_det = layer(torch.full((points, 2), 3.0))
    torch.testing.assert_close(y, torch.zeros(points, 2))
    assert torch.isfinite(log_det).all()


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_a_flow_is_built_again_from_its_description_and_weights(make):
    flow = make(5, CONTEXT)
    with torch.device("meta"):
        again = spec.build(spec.describe(flow))
    again.load_state_dict(copy.deepcopy(flow.state_dict()), strict=True, assign=True)
    assert spec.describe(again) == spec.describe(flow)
    z, context = torch.randn(4, 5), torch.randn(4, CONTEXT)
    for expected, found in zip(flow.eval()(z, context), again.eval()(z, context), strict=True):
        assert torch.equal(expected, found)
    assert (again.forward_passes, again.inverse_passes) == (flow.forward_passes, flow.inverse_passes)


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_a_flow_that_is_built_without_memory_has_none(make):
    with torch.device("meta"):
        flow = make(5, CONTEXT)
    assert all(t.is_meta for t in flow.state_dict().values())


def test_a_permutation_is_fixed_by_its_seed():
    assert torch.equal(flows.Permutation(20, 3).order, flows.Permutation(20, 3).order)
    assert not torch.equal(flows.Permutation(20, 3).order, flows.Permutation(20, 4).order)


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("bf16", [False, True])
def test_extreme_inputs_and_weights_stay_finite_both_ways_with_their_gradients(make, bf16):
    flow = make(8, CONTEXT)
    scramble(flow, scale=1e3).float()
    z = torch.tensor([0.0, 1e-6, 1.0, -30.0, 1e6])[:, None].expand(5, 8).clone().requires_grad_()
    context = torch.full((5, CONTEXT), 1e4)
    for way in (flow, flow.inverse):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y, log_det = way(z, context)
        assert y.dtype == log_det.dtype == torch.float32
        inputs = [z, *flow.parameters()]
        gradients = torch.autograd.grad((y.sum() + log_det.sum()), inputs, allow_unused=True)
        assert all(torch.isfinite(t).all() for t in (y, log_det, *gradients) if t is not None)


def test_flows_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="at least one flow"):
        flows.Chain(())
    with pytest.raises(UsageError, match=r"\[2, 3\]"):
        flows.Chain((flows.ActNorm(2), flows.ActNorm(3)))
    with pytest.raises(UsageError, match="at least 1"):
        flows.real_nvp(2, layers=0)
    with pytest.raises(UsageError, match="context_dim"):
        flows.AutoregressiveAffine(2, context_dim=-1)
    with pytest.raises(UsageError, match="2 components"):
        flows.Flowed(DiagonalNormal(torch.zeros(3), torch.zeros(3)), flows.ActNorm(2))


# ---- Flowed


def flowed(name: str, dim: int, batch: int = 3, seed: int = 0) -> flows.Flowed:
    flow = scramble(FLOWS[name](dim, CONTEXT), seed, 0.4)
    base = DiagonalNormal(normal(batch, dim, seed=5), 0.3 * normal(batch, dim, seed=6))
    return flows.Flowed(base, flow, normal(batch, CONTEXT, seed=7))


@pytest.mark.verifies(lb.flows.Flowed, against="quadrature")
@pytest.mark.parametrize("name", ["real-nvp", "iaf", "maf", "mixed"])
def test_the_carried_density_integrates_to_one(name):
    line = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    density = flowed(name, 1).log_prob(line[:, None, None]).exp()
    torch.testing.assert_close(torch.trapezoid(density, line, dim=0), torch.ones(3).double(), atol=1e-5, rtol=0)
    q = flowed(name, 2, batch=1)
    torch.manual_seed(0)
    z = q.sample((20_000,))[:, 0]
    # A window that holds all but a few draws, and a grid that is fine enough for the narrowest direction.
    low, high = z.quantile(0.0005, 0), z.quantile(0.9995, 0)
    low, high = low - 0.5 * (high - low), high + 0.5 * (high - low)
    sides = [torch.linspace(low[d], high[d], 500, dtype=torch.float64) for d in (0, 1)]
    density = q.log_prob(torch.cartesian_prod(*sides)[:, None]).exp().reshape(500, 500)
    mass = torch.trapezoid(torch.trapezoid(density, sides[1]), sides[0])
    torch.testing.assert_close(mass, torch.tensor(1.0).double(), atol=2e-3, rtol=0)


@pytest.mark.verifies(lb.flows.Flowed, against="quadrature")
@pytest.mark.parametrize("name", ["real-nvp", "iaf", "maf"])
def test_samples_have_the_moments_of_the_density(name):
    q = flowed(name, 1)
    line = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    density = q.log_prob(line[:, None, None]).exp()
    mean = torch.trapezoid(line[:, None] * density, line, dim=0)
    spread = torch.trapezoid((line[:, None] - mean).square() * density, line, dim=0).sqrt()
    torch.manual_seed(0)
    z = q.sample((40_000,))[..., 0]
    assert ((z.mean(0) - mean).abs() < 4.5 * spread / 200).all()
    torch.testing.assert_close(z.std(0), spread, rtol=0.03, atol=0)
    # With one component these flows are affine, where the fixed draws are exact.
    torch.testing.assert_close(q.mean[:, 0], mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(q.stddev[:, 0], spread, atol=1e-4, rtol=0)


def test_the_estimated_moments_are_near_those_of_many_draws_and_touch_no_generator():
    q = flowed("real-nvp", 5)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    mean, stddev = q.mean, q.stddev
    assert torch.equal(mean, q.mean)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(q.variance, stddev.square())
    z = q.sample((20_000,))
    assert ((mean - z.mean(0)).abs() < 0.35 * z.std(0)).all()
    assert ((stddev / z.std(0)).log().abs() < 0.35).all()
    # An example's moments do not depend on its neighbours.
    torch.testing.assert_close(q[torch.tensor([1])].mean, mean[1:2])


@pytest.mark.parametrize("name", ["real-nvp", "iaf", "maf"])
def test_what_is_remembered_of_a_draw_is_what_the_inverse_finds(name):
    q = flowed(name, 5)
    for parameter in (q.base.loc, q.base.log_scale, q.context):
        parameter.requires_grad_()
    parameters = [q.base.loc, q.base.log_scale, q.context, *q.flow.parameters()]
    z = q.rsample((6,))
    remembered, found = q.log_prob(z), q.log_prob(z.clone())
    assert remembered.shape == (6, 3)
    torch.testing.assert_close(remembered, found, atol=1e-9, rtol=1e-9)
    weights = normal(6, 3, seed=9)
    for mine, true in zip(
        torch.autograd.grad((weights * remembered).sum(), parameters, allow_unused=True, retain_graph=True),
        torch.autograd.grad((weights * found).sum(), parameters, allow_unused=True),
        strict=True,
    ):
        if true is None:
            assert mine is None or not mine.any()
        else:
            torch.testing.assert_close(torch.zeros_like(true) if mine is None else mine, true, atol=1e-7, rtol=1e-7)


def test_a_draw_is_remembered_only_where_that_is_right(monkeypatch):
    q = flowed("iaf", 5)
    inverse, calls = q.flow.inverse, []
    monkeypatch.setattr(q.flow, "inverse", lambda *a: (calls.append(1), inverse(*a))[1])

    def went_back(value: torch.Tensor) -> bool:
        calls.clear()
        q.log_prob(value)
        return bool(calls)

    z = q.rsample((2,))
    assert not went_back(z)
    assert went_back(z[:1])
    assert went_back(z.detach())
    z2 = q.rsample((2,))
    assert not went_back(z2)
    assert went_back(z), "only the last draw is remembered"
    with torch.no_grad():
        z3 = q.rsample((2,))
        assert not went_back(z3)
    assert went_back(z3), "a draw without gradients cannot give those of the parameters"
    with torch.no_grad():
        z4 = q.rsample((2,))
        z4 += 1
        assert went_back(z4), "it was changed since"
    with torch.inference_mode():
        assert not went_back(q.rsample((2,)))


@pytest.mark.verifies(lb.flows.Flowed, against="finite differences")
def test_the_score_of_a_fixed_value_is_that_of_the_density():
    """A draw made without gradients, as score-function estimators use it, gives the parameters' gradient at fixed z."""
    q = flowed("iaf", 2)
    q.base.loc.requires_grad_()
    z = q.sample()
    (score,) = torch.autograd.grad(q.log_prob(z).sum(), [q.base.loc])
    step = 1e-6
    with torch.no_grad():
        for place in ((0, 0), (2, 1)):
            moved = [q.base.loc.clone(), q.base.loc.clone()]
            moved[0][place] -= step
            moved[1][place] += step
            low, high = (
                flows.Flowed(DiagonalNormal(m, q.base.log_scale), q.flow, q.context).log_prob(z).sum() for m in moved
            )
            torch.testing.assert_close(score[place], (high - low) / (2 * step), atol=1e-5, rtol=1e-5)


def test_flowed_expands_and_is_indexed():
    q = flowed("iaf", 2)
    z = normal(4, 3, 2)
    torch.testing.assert_close(q.expand((4, 3)).log_prob(z), q.log_prob(z))
    index = torch.tensor([2, 0])
    torch.testing.assert_close(q[index].log_prob(z[:, index]), q.log_prob(z)[:, index])
    assert analytic_kl(q, q.base) is None
    assert analytic_kl(q.base, q) is None


# ---- full covariances


def full_normal(batch: int, dim: int, seed: int) -> FullNormal:
    tril = normal(batch, dim, dim, seed=seed).tril(-1) + torch.diag_embed(normal(batch, dim, seed=seed + 1).exp())
    return FullNormal(normal(batch, dim, seed=seed + 2), tril)


def theirs(q: FullNormal) -> MultivariateNormal:
    return MultivariateNormal(q.loc, scale_tril=q.scale_tril)


@pytest.mark.verifies(lb.heads.FullNormal, against="torch")
def test_the_full_normal_is_torchs():
    q = full_normal(4, 3, 0)
    for value in (normal(5, 4, 3), normal(5, 2, 1, 3), normal(4, 3), normal(3)):
        torch.testing.assert_close(q.log_prob(value), theirs(q).log_prob(value))
    torch.testing.assert_close(q.entropy(), theirs(q).entropy())
    torch.testing.assert_close(q.mean, theirs(q).mean)
    torch.testing.assert_close(q.variance, theirs(q).variance)
    torch.testing.assert_close(q.stddev, theirs(q).stddev)
    for shape in ((), (7,), (2, 5)):
        torch.manual_seed(0)
        mine = q.rsample(shape)
        torch.manual_seed(0)
        torch.testing.assert_close(mine, theirs(q).rsample(shape))
    torch.testing.assert_close(q.expand((6, 4)).log_prob(normal(6, 4, 3)), q.log_prob(normal(6, 4, 3)))
    torch.testing.assert_close(q[torch.tensor([3, 1])].loc, q.loc[[3, 1]])


def test_a_full_normals_own_arithmetic_is_not_lowered_by_autocast():
    q = full_normal(4, 3, 0)
    q = FullNormal(q.loc.float(), q.scale_tril.float())
    eps, value = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    plain = q.from_noise(eps), q.log_prob(value), analytic_kl(q, q[torch.tensor([1, 0, 3, 2])])
    with torch.autocast("cpu", torch.bfloat16):
        lowered = q.from_noise(eps), q.log_prob(value), analytic_kl(q, q[torch.tensor([1, 0, 3, 2])])
    for expected, found in zip(plain, lowered, strict=True):
        assert torch.equal(expected, found)


@pytest.mark.verifies(lb.heads.DiagonalNormal, lb.heads.FullNormal, against="torch")
def test_the_kls_of_full_and_diagonal_normals_are_torchs():
    q, p = full_normal(4, 3, 0), full_normal(4, 3, 10)
    diagonal = DiagonalNormal(normal(4, 3, seed=20), normal(4, 3, seed=21))
    as_full = MultivariateNormal(diagonal.loc, torch.diag_embed(diagonal.variance))
    torch.testing.assert_close(analytic_kl(q, p), kl_divergence(theirs(q), theirs(p)))
    torch.testing.assert_close(analytic_kl(q, diagonal), kl_divergence(theirs(q), as_full))
    torch.testing.assert_close(analytic_kl(diagonal, q), kl_divergence(as_full, theirs(q)))
    torch.testing.assert_close(analytic_kl(q, q), torch.zeros(4).double(), atol=1e-12, rtol=0)
    prior = DiagonalNormal(diagonal.loc[0], diagonal.log_scale[0])
    expected = kl_divergence(theirs(q), MultivariateNormal(prior.loc, torch.diag(prior.variance)))
    torch.testing.assert_close(analytic_kl(q, prior), expected)
    alone = FullNormal(p.loc[0], p.scale_tril[0])
    torch.testing.assert_close(analytic_kl(q, alone), kl_divergence(theirs(q), theirs(alone)))


def test_a_full_normal_head_begins_diagonal_and_learns_to_be_full():
    head = FullNormalHead((16,), (4,)).double()
    h = normal(5, 16)
    tril = head(h, torch.Size([5])).scale_tril
    assert torch.equal(tril, torch.diag_embed(tril.diagonal(dim1=-2, dim2=-1)))
    head.zero_grad()
    head(h, torch.Size([5])).log_prob(normal(5, 4, seed=2)).sum().backward()
    assert (head.factor.weight.grad != 0).all()
    scramble(head, scale=0.3)
    tril = head(h, torch.Size([5])).scale_tril
    assert (tril[:, *torch.tril_indices(4, 4)] != 0).all()
    assert not tril.triu(1).any()
    assert head(h, torch.Size([1, 5])).scale_tril.shape == (1, 5, 4, 4)
    assert FullNormalHead((16,), (1,))(h.float(), torch.Size([5])).scale_tril.shape == (5, 1, 1)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_full_normal_stays_finite_with_extreme_features(bf16):
    torch.manual_seed(0)
    head = FullNormalHead((16,), (8,))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(1e5 * torch.randn_like(parameter))
    prior = StandardNormal(8)()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        q = head(torch.randn(5, 16), torch.Size([5]))
        z = q.rsample((3,))
        terms = (q.log_prob(z), q.log_prob(torch.randn(3, 5, 8)), analytic_kl(q, prior))
    assert all(t.dtype == torch.float32 for t in (z, *terms))
    sum(t.mean() for t in terms).backward()
    assert all(torch.isfinite(t).all() for t in (z, *terms, *(p.grad for p in head.parameters())))


def set_to(head: FullNormalHead, gain: torch.Tensor, offset: torch.Tensor, covariance: torch.Tensor) -> None:
    """Sets a head on identity features so that q(z|x) = N(gain x + offset, covariance)."""
    tril = torch.linalg.cholesky(covariance)
    scale = tril.diagonal()
    slopes = tril / scale[:, None]
    raw = torch.where(torch.eye(len(tril)).bool(), scale.log().diag(), 10 * torch.atanh(slopes.tril(-1) / 10))
    row, column = head._places()
    with torch.no_grad():
        head.project.weight.copy_(gain)
        head.project.bias.copy_(offset)
        head.factor.weight.zero_()
        head.factor.bias.copy_(raw[row, column])


@pytest.mark.verifies(lb.heads.FullNormal, against="linear-Gaussian oracle")
@pytest.mark.parametrize("seed", range(5))
def test_a_full_normal_at_the_true_posterior_makes_the_bound_tight(seed):
    """For a W whose columns are not orthogonal, which no diagonal posterior can do."""
    oracle = linear_gaussian(seed, latent=3)
    posterior = oracle.posterior()
    covariance = posterior.covariance_matrix[0]
    assert (covariance - covariance.diagonal().diag()).abs().max() > 1e-3
    gain = covariance @ oracle.weight.T / oracle.noise**2
    head = FullNormalHead((5,), (3,)).double()
    set_to(head, gain.detach(), (-gain @ oracle.bias).detach(), covariance.detach())
    vae = VAE(Conditional(Identity((5,)), head), oracle.vae.decoder, oracle.vae.prior)
    trace = vae.trace(oracle.x, num_samples=20)
    torch.testing.assert_close(trace.log_w, oracle.log_px().expand(20, -1), atol=1e-9, rtol=0)
    evidence = log_evidence(vae, oracle.x, num_samples=3)
    torch.testing.assert_close(evidence.log_px, oracle.log_px(), atol=1e-9, rtol=0)
    to_prior = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    torch.testing.assert_close(evidence.rate, kl_divergence(posterior, to_prior), atol=1e-9, rtol=0)


def test_a_flowed_posterior_learns_what_a_diagonal_one_cannot():
    """On a linear-Gaussian model with a correlated posterior: the gap to the evidence is what q cannot express."""
    oracle = linear_gaussian(2, dims=2, examples=64)
    with torch.no_grad():
        oracle.weight.copy_(torch.tensor([[1.0, 1.0], [0.2, -0.2]]))
    posterior = oracle.posterior()
    precision = posterior.precision_matrix[0]
    # KL(q || p(z|x)) at the best diagonal q, which has the posterior's mean and the diagonal of its precision.
    best_diagonal = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    assert best_diagonal > 0.3
    torch.manual_seed(0)
    head = FlowedNormal((2,), (2,), flows.inverse_autoregressive(2, 2, 16, CONTEXT)).double()
    vae = VAE(Conditional(Identity((2,)), head), oracle.vae.decoder, oracle.vae.prior)
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(400):
        optimiser.zero_grad()
        (-vae.trace(oracle.x, 4).log_w.mean()).backward()
        optimiser.step()
    gap = (oracle.log_px() - vae.trace(oracle.x, 500).log_w.mean(0)).mean()
    assert 0 < gap < 0.3 * best_diagonal


def test_posteriors_over_what_is_no_vector_are_refused():
    with pytest.raises(UsageError, match=r"\(D,\)"):
        FullNormalHead((16,), (2, 2))
    with pytest.raises(UsageError, match=r"\(D,\)"):
        FlowedNormal((16,), (1, 2, 2), flows.ActNorm(4))
    with pytest.raises(UsageError, match="3 components"):
        FlowedNormal((16,), (2,), flows.ActNorm(3))
