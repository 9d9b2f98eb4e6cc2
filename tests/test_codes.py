"""Discrete codes: the bound against brute force, the prior's normalisation, quantisers against their equations."""

import itertools
import json
import math

import pytest
import torch
from oracle import Identity
from torch import Tensor

import lowerbound as lb
from lowerbound import heads, nn, spec
from lowerbound.checkpoint import build_model
from lowerbound.data import ArraySource, Support, generator
from lowerbound.discrete import CodeMass
from lowerbound.errors import UsageError
from lowerbound.evidence import (
    Annealing,
    Defensive,
    Start,
    annealed_evidence,
    bidirectional,
    log_evidence,
    posterior_gap,
    quadrature_evidence,
    sweep,
)
from lowerbound.metrics import codebook_usage, information
from lowerbound.model import VAE
from lowerbound.objectives import ELBO, IWAE, WAE, FreeBits, Quantised, Reconstruction
from lowerbound.priors import AutoregressiveCodes, StandardNormal
from lowerbound.training import Precision, autocast

CPU = torch.device("cpu")
DIMS = 6
LEVELS = (3, 4)
QUANTISERS = {
    "vq": lambda in_shape, positions: heads.VectorQuantised(in_shape, (positions, 2), num_codes=5),
    "vq-gradient": lambda in_shape, positions: heads.VectorQuantised(in_shape, (positions, 2), 5, decay=None),
    "fsq": lambda in_shape, positions: heads.FiniteScalar(in_shape, (positions, 2), LEVELS),
}


def model(kind: str, *, positions: int = 3, dims: int = DIMS, seed: int = 0) -> VAE:
    """A tiny model in float64 whose every sequence of codes can be listed, with a prior that is far from uniform."""
    torch.manual_seed(seed)
    down, up = nn.MLP((dims,), (16,), nn.Tanh()), nn.MLP((positions, 2), (16,), nn.Tanh())
    head = QUANTISERS[kind](down.out_shape, positions)
    prior = AutoregressiveCodes(head.event_shape, head.num_codes, width=8, depth=2, num_heads=2)
    vae = VAE(heads.Conditional(down, head), heads.Conditional(up, heads.Bernoulli(up.out_shape, (dims,))), prior)
    with torch.no_grad():
        for part in (prior.project.weight, prior.bias, vae.decoder.head.project.weight, head.project.weight):
            part.copy_(2 * torch.randn_like(part))
    return vae.double().eval()


def binary(count: int = 7, dims: int = DIMS) -> Tensor:
    return (torch.rand(count, dims, generator=generator(1)) < 0.5).double()


def all_codes(head: heads.Quantiser) -> Tensor:
    """Every sequence of codes, `[K^T, T]`."""
    return torch.tensor(list(itertools.product(range(head.num_codes), repeat=head.positions)))


def exact_log_px(vae: VAE, x: Tensor) -> Tensor:
    """log p(x) as the sum over every sequence of codes, `[B]`."""
    z = vae.encoder.head.vectors_of(all_codes(vae.encoder.head))
    joint = vae.decoder(z[:, None].expand(-1, len(x), -1, -1)).log_prob(x) + vae.prior().log_prob(z)[:, None]
    return joint.logsumexp(0)


# ---- the bound --------------------------------------------------------------------------------------------------


@pytest.mark.verifies(lb.heads.VectorQuantised, lb.heads.FiniteScalar, lb.objectives.Quantised, against="enumeration")
@pytest.mark.parametrize("kind", QUANTISERS)
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_bound_is_below_the_exact_evidence_by_the_log_posterior_of_the_encoders_codes(kind, seed):
    """log p(x) - ELBO = -log p(z_q|x): Bayes' theorem, with p(z|x) from the full sum."""
    vae, x = model(kind, seed=seed), binary()
    log_px, terms = exact_log_px(vae, x), Quantised()(vae, x)
    assert (terms.elbo <= log_px).all()
    head = vae.encoder.head
    codes = all_codes(head)
    z = head.vectors_of(codes)
    joint = vae.decoder(z[:, None].expand(-1, len(x), -1, -1)).log_prob(x) + vae.prior().log_prob(z)[:, None]
    chosen = (codes[:, None] == vae.encoder(x).codes).all(-1)  # [K^T, B]
    assert (chosen.sum(0) == 1).all()
    log_posterior = (joint - log_px).T[chosen.T]
    torch.testing.assert_close(log_px - terms.elbo, -log_posterior, atol=1e-9, rtol=0)
    assert (log_px - terms.elbo > 1e-3).any(), "a gap of nothing would show nothing"


@pytest.mark.parametrize("kind", QUANTISERS)
@torch.no_grad()
def test_the_bound_is_tight_where_only_the_encoders_codes_explain_x(kind):
    """A prior with all its mass on one sequence, and that the encoder's."""
    vae, x = model(kind), binary()
    vae.encoder.head.project.weight.zero_()
    (code,) = vae.encoder(x[:1]).codes
    vae.prior.project.weight.zero_()
    vae.prior.bias.zero_()
    vae.prior.bias[torch.arange(3), code] = 60.0
    torch.testing.assert_close(Quantised()(vae, x).elbo, exact_log_px(vae, x), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_importance_weights_from_q_alone_are_all_the_elbo_and_the_prior_adds_what_is_missing(kind):
    vae, x = model(kind, positions=2), binary()
    elbo = Quantised()(vae, x).elbo.detach()
    for k in (1, 7, 64):
        evidence = log_evidence(vae, x, num_samples=k)
        torch.testing.assert_close(evidence.log_px, elbo, atol=1e-9, rtol=0)
        torch.testing.assert_close(evidence.ess, torch.full_like(elbo, k), atol=1e-6, rtol=0)
    torch.testing.assert_close(sweep(vae, x, (1, 5)).log_px, elbo.mean().expand(2), atol=1e-9, rtol=0)
    with torch.no_grad():
        # Draws from the prior find the posterior only where that is not far from it.
        for parameter in (vae.prior.project.weight, vae.prior.bias, vae.decoder.head.project.weight):
            parameter.mul_(0.3)
    elbo = Quantised()(vae, x).elbo.detach()
    torch.manual_seed(0)
    mixed = log_evidence(vae, x, num_samples=3000, defensive=Defensive(prior_weight=0.9, widened_weight=0.0))
    with torch.no_grad():
        exact = exact_log_px(vae, x)
    assert ((mixed.log_px - exact).abs() < 5 * mixed.stderr + 1e-6).all()
    assert (mixed.stderr < 0.1).all()
    assert (exact - elbo).max() > 0.1
    torch.testing.assert_close(mixed.elbo, elbo, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_evaluate_looks_beyond_the_encoders_codes(kind):
    """log p(x) by enumeration: the ELBO falls short of it, and what evaluate gives does not."""
    vae, x = model(kind, positions=2), binary()
    with torch.no_grad():
        for parameter in (vae.prior.project.weight, vae.prior.bias, vae.decoder.head.project.weight):
            parameter.mul_(0.3)
        exact = exact_log_px(vae, x).mean().item()
    source = ArraySource(x, support=Support.BINARY, scale=1.0)
    source.decode = lambda raw: raw
    found = lb.evaluate(vae, source, num_samples=5000)
    assert abs(found.log_px - exact) < 5 * found.log_px_mc_stderr + 1e-6
    assert found.log_px_mc_stderr < 0.1
    assert found.elbo == pytest.approx(Quantised()(vae, x).elbo.mean().item())
    assert exact - found.elbo > 5 * found.log_px_mc_stderr + 0.05
    assert found.posterior_gap == pytest.approx(found.log_px - found.elbo)
    assert found.num_samples == 5000
    assert found.khat_bad is found.ess_median is found.sweep is None
    assert log_evidence(vae, x, num_samples=500, defensive=Defensive()).khat.isnan().all()


@pytest.mark.parametrize("kind", QUANTISERS)
def test_terms_are_what_they_are_called(kind):
    vae, x = model(kind), binary()
    terms, q, head = Quantised(commitment=0.7)(vae, x), vae.encoder(x), vae.encoder.head
    assert isinstance(q, CodeMass)
    torch.testing.assert_close(terms.distortion, -vae.decoder(q.z).log_prob(x))
    torch.testing.assert_close(terms.kl, -vae.prior().log_prob(q.z))
    torch.testing.assert_close(terms.elbo, -terms.distortion - terms.kl)
    distance = (q.raw - head.vectors_of(q.codes)).square().sum(-1).mean(-1)
    weight = {"vq": 0.7, "vq-gradient": 1.7, "fsq": 0.0}[kind]
    torch.testing.assert_close(terms.loss + terms.elbo, weight * distance)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_the_encoders_mass_is_1_at_its_codes_and_0_elsewhere(kind):
    vae, x = model(kind), binary()
    q, head = vae.encoder(x), vae.encoder.head
    everywhere = head.vectors_of(all_codes(head))[:, None]
    assert torch.equal(q.log_prob(q.rsample((4,))), torch.zeros(4, len(x), dtype=torch.float64))
    torch.testing.assert_close(q.log_prob(everywhere).exp().sum(0), torch.ones(len(x), dtype=torch.float64))
    assert torch.equal(q.entropy(), torch.zeros(len(x), dtype=torch.float64))
    assert torch.equal(head.codes_of(q.z), q.codes)


# ---- the prior --------------------------------------------------------------------------------------------------


@pytest.mark.verifies(lb.priors.AutoregressiveCodes, against="enumeration")
@pytest.mark.parametrize("kind", QUANTISERS)
@pytest.mark.parametrize("positions", [1, 3])
@torch.no_grad()
def test_the_prior_is_normalised_over_all_sequences(kind, positions):
    vae = model(kind, positions=positions)
    head, p = vae.encoder.head, vae.prior()
    codes = all_codes(head)
    log_prob = p.log_prob_of_codes(codes)
    torch.testing.assert_close(log_prob.logsumexp(0), torch.zeros((), dtype=torch.float64), atol=1e-10, rtol=0)
    assert log_prob.std() > 0.5, "not uniform"
    torch.testing.assert_close(p.log_prob(head.vectors_of(codes)), log_prob)


@torch.no_grad()
def test_the_parallel_pass_and_one_step_at_a_time_agree():
    prior = model("vq", positions=4).prior
    codes = torch.randint(5, (9, 4), generator=generator(0))
    each = [prior.logits(codes[:, :t], last=True)[:, -1].log_softmax(-1) for t in range(4)]
    stepwise = sum(log_p.gather(1, codes[:, t, None])[:, 0] for t, log_p in enumerate(each))
    torch.testing.assert_close(prior().log_prob_of_codes(codes), stepwise)


@torch.no_grad()
def test_a_code_depends_on_those_before_it_and_on_no_other():
    prior = model("vq", positions=4).prior
    codes = torch.randint(5, (1, 3), generator=generator(0))
    before = prior.logits(codes)
    for changed in range(3):
        other = codes.clone()
        other[0, changed] = (other[0, changed] + 1) % 5
        moved = (prior.logits(other) - before).abs().amax(-1)[0] > 1e-12
        assert moved.tolist() == [False] * (changed + 1) + [True] * (3 - changed)


@torch.no_grad()
def test_the_priors_samples_have_its_probabilities():
    vae = model("vq", positions=2)
    p, codes = vae.prior(), all_codes(vae.encoder.head)
    torch.manual_seed(0)
    drawn = vae.encoder.head.codes_of(p.sample((200, 100)))
    assert drawn.shape == (200, 100, 2)
    share = torch.bincount((drawn @ torch.tensor([5, 1])).flatten(), minlength=25) / 20_000
    expected = p.log_prob_of_codes(codes).exp()
    error = (share - expected) / (expected * (1 - expected) / 20_000).sqrt()
    assert (error.abs() < 4.5).all()
    assert expected.max() > 0.1


def test_the_prior_learns_and_its_gradient_stays_in_it():
    vae, x = model("fsq"), binary()
    Quantised()(vae, x).kl.mean().backward()
    for name, p in vae.named_parameters():
        reached = p.grad is not None and bool(p.grad.abs().sum() > 0)
        assert reached == name.startswith("prior."), name


# ---- vector quantisation ----------------------------------------------------------------------------------------


def bare(head: heads.Quantiser) -> heads.Conditional:
    """An encoder whose raw values are x itself."""
    with torch.no_grad():
        head.project.weight.copy_(torch.eye(len(head.project.weight)))
        head.project.bias.zero_()
    return heads.Conditional(Identity(head.in_shape), head).double()


def test_each_vector_goes_to_the_nearest_code():
    head = bare(heads.VectorQuantised((6,), (3, 2), num_codes=9)).head
    r = torch.randn(50, 3, 2, generator=generator(0), dtype=torch.float64)
    assert torch.equal(head.codes_of(r), torch.cdist(r.reshape(-1, 2), head.codebook).argmin(1).reshape(50, 3))
    assert torch.equal(head.codes_of(head.vectors_of(torch.arange(9))), torch.arange(9))


@pytest.mark.verifies(lb.heads.VectorQuantised, against="definition")
@pytest.mark.parametrize("decay", [None, 0.9])
def test_gradients_are_those_written_by_hand(decay):
    """dL/dr = dD/dz + 2 beta (r - e) / T straight through; dL/de_k = sum over its r of 2 (e_k - r) / T, or nothing."""
    encoder = bare(heads.VectorQuantised((6,), (3, 2), num_codes=4, decay=decay))
    up = heads.Conditional(Identity((3, 2)), heads.Normal((3, 2), (6,))).double()
    vae = VAE(encoder, up, AutoregressiveCodes((3, 2), 4, width=8).double()).eval()
    x = torch.randn(5, 6, generator=generator(0), dtype=torch.float64, requires_grad=True)
    Quantised(commitment=0.3)(vae, x).loss.sum().backward()
    head, r = encoder.head, x.detach().reshape(5, 3, 2)
    codes = head.codes_of(r)
    z = head.codebook.detach()[codes].requires_grad_()
    # x is both what is coded and what is decoded to; only the first is of interest, so the second is taken off.
    target = x.detach().clone().requires_grad_()
    dz, dtarget = torch.autograd.grad(-up(z).log_prob(target).sum(), (z, target))
    dr = dz + 2 * 0.3 * (r - z.detach()) / 3
    torch.testing.assert_close(x.grad, dr.reshape(5, 6) + dtarget)
    if decay is None:
        expected = torch.zeros(4, 2, dtype=torch.float64)
        expected.index_add_(0, codes.flatten(), (2 * (z.detach() - r) / 3).reshape(-1, 2))
        torch.testing.assert_close(head.codebook.grad, expected)
    else:
        assert not head.codebook.requires_grad


def test_the_moving_average_is_the_papers_ratio_of_two():
    decay, head = 0.8, bare(heads.VectorQuantised((4,), (2, 2), num_codes=3, decay=0.8, restart=0.0)).head
    count, total = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    began = head.codebook.clone()
    for seed in range(6):
        r = torch.randn(8, 4, generator=generator(seed), dtype=torch.float64)
        q = head(r, torch.Size([8]))
        for k in range(3):
            chose = q.raw.detach()[q.codes == k]
            count[k] = decay * count[k] + (1 - decay) * len(chose)
            total[k] = decay * total[k] + (1 - decay) * chose.sum(0)
        head.learn(q)
        expected = torch.where(count[:, None] > 0, total / count[:, None], began)
        torch.testing.assert_close(head.codebook, expected)
        torch.testing.assert_close(head.usage, count)


def test_a_code_that_nobody_chooses_stays_and_its_count_falls():
    head = heads.VectorQuantised((2,), (1, 2), num_codes=2, restart=0.0)
    head.codebook.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    head.usage.fill_(1.0)
    q = CodeMass(torch.zeros(4, 1, 2), torch.zeros(4, 1, dtype=torch.long), 0.1 * torch.ones(4, 1, 2))
    for _ in range(5000):
        head.learn(q)
    assert torch.equal(head.codebook[1], torch.tensor([9.0, 9.0]))
    assert head.usage[1] < 1e-20
    torch.testing.assert_close(head.codebook[0], torch.tensor([0.1, 0.1]))


@pytest.mark.parametrize("decay", [None, 0.99])
def test_dead_codes_begin_anew_at_vectors_of_the_batch_and_living_ones_do_not(decay):
    head = heads.VectorQuantised((2,), (1, 2), num_codes=6, decay=decay, restart=0.5)
    raw = torch.randn(12, 1, 2, generator=generator(0))
    head.usage.copy_(torch.tensor([2.0, 2.0, 0.1, 0.0, 2.0, 0.9]))  # fair: 12 / 6 = 2
    before = head.codebook.detach().clone()
    codes = torch.tensor([0, 1, 4]).repeat(4)[:, None]
    torch.manual_seed(0)
    head.learn(CodeMass(raw, codes, raw))
    fresh = (head.codebook.detach()[:, None] == raw[:, 0]).all(-1).any(1)
    assert fresh.tolist() == [False, False, True, True, False, True]
    assert head.usage[fresh].tolist() == [2.0, 2.0, 2.0]
    assert torch.equal(head.codebook[~fresh], before[~fresh]) == (decay is None)


def test_a_codebook_that_has_collapsed_comes_to_life():
    """All codes far from the data but one: without a restart nothing else is ever chosen."""
    used = {}
    for restart in (0.0, 0.1):
        torch.manual_seed(0)
        head = heads.VectorQuantised((2,), (1, 2), num_codes=32, restart=restart)
        head.codebook.fill_(100.0)
        head.codebook[0] = 0.0
        head.usage.fill_(8.0)
        for _ in range(400):
            raw = torch.randn(256, 1, 2)
            codes = head.codes_of(raw)
            head.learn(CodeMass(raw, codes, raw))
        used[restart] = codebook_usage(head.codes_of(torch.randn(4000, 1, 2)), 32)
    assert used[0.0].used == 1
    assert used[0.1].perplexity > 20


def test_nothing_is_learned_but_in_training():
    vae, x = model("vq"), binary()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    Quantised()(vae, x)
    vae.train()
    vae.trace(x)
    with torch.no_grad():
        Quantised()(vae, x)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    Quantised()(vae, x)
    changed = {k for k, v in vae.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"encoder.head.codebook", "encoder.head.usage"}


# ---- finite scalars ---------------------------------------------------------------------------------------------


@pytest.mark.verifies(lb.heads.FiniteScalar, against="enumeration")
@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3,), (7, 4), (8, 6, 5)])
def test_codes_and_grid_points_are_the_same_thing_twice(levels):
    head = heads.FiniteScalar((8,), (2, len(levels)), levels)
    codes = torch.arange(math.prod(levels))
    z = head.vectors_of(codes)
    assert head.num_codes == len(codes) == len(z.unique(dim=0))
    assert torch.equal(head.codes_of(z), codes)
    assert ((z >= -1) & (z <= 1)).all()
    for d, count in enumerate(levels):
        step = 1 / (count // 2)
        expected = -1 + step * torch.arange(count)
        torch.testing.assert_close(z[:, d].unique(), expected)


def test_every_level_is_reached_and_none_beyond():
    head = bare(heads.FiniteScalar((4,), (2, 2), (5, 8))).head
    r = torch.linspace(-50, 50, 4001, dtype=torch.float64)[:, None].expand(-1, 4)
    q = head(r, torch.Size([4001]))
    assert sorted(q.z[:, 0, 0].unique().tolist()) == [-1, -0.5, 0, 0.5, 1]
    assert sorted(q.z[:, 0, 1].unique().tolist()) == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]
    assert torch.equal(head.vectors_of(q.codes).double(), q.z)
    torch.testing.assert_close(head.bounded(torch.zeros(1, 2)), torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_the_gradient_of_rounding_is_that_of_the_bound_alone():
    """dz/dr = f'(r) / floor(L / 2), with f' = (L - 1) / 2 (1 - eps) (1 - tanh^2(r + s))."""
    head = bare(heads.FiniteScalar((2,), (1, 2), (5, 8))).head
    r = torch.tensor([[0.3, -0.8], [2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    head(r, torch.Size([2])).z.sum().backward()
    reach = torch.tensor([2.0, 3.5], dtype=torch.float64) * 0.999
    shift = torch.atanh(torch.tensor([0.0, 0.5], dtype=torch.float64) / reach)
    slope = reach * (1 - torch.tanh(r.detach() + shift) ** 2)
    torch.testing.assert_close(r.grad, slope / torch.tensor([2.0, 4.0], dtype=torch.float64))


# ---- grids and networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [(28, 28), (9, 6), (5, 5), (8, 13)])
@pytest.mark.parametrize("channels", [(4,), (4, 6), (3, 4, 5)])
def test_pictures_of_any_size_go_to_a_grid_and_back(picture, channels):
    down = nn.ConvToGrid((2, *picture), channels)
    height, width = down.out_shape[1:]
    up = nn.ConvFromGrid((height * width, 3), picture, channels)
    head = heads.VectorQuantised(down.out_shape, (height * width, 3), num_codes=4)
    x = torch.rand(2, 2, *picture)
    assert down(x).shape == (2, *down.out_shape)
    q = heads.Conditional(down, head)(x)
    assert q.z.shape == (2, height * width, 3)
    assert up(q.z).shape == (2, *up.out_shape) == (2, channels[0], *picture)


def test_a_place_of_the_grid_is_coded_and_decoded_where_it_lies():
    down = nn.ConvToGrid((1, 16, 16), (4, 4), blocks=0).double()
    head = heads.FiniteScalar(down.out_shape, (16, 2), LEVELS).double()
    up = nn.ConvFromGrid((16, 2), (16, 16), (4, 4), blocks=0).double()
    x = torch.rand(1, 1, 16, 16, generator=generator(0), dtype=torch.float64)
    other = x.clone()
    other[..., :1, 12:] += 1  # the upper right corner
    raw = [heads.Conditional(down, head)(picture).raw[0] for picture in (x, other)]
    assert ((raw[0] - raw[1]).abs().amax(1) > 0).nonzero().flatten().tolist() == [3]
    z = torch.zeros(2, 16, 2, dtype=torch.float64)
    z[1, 12] = 1  # the lower left corner
    moved = (up(z)[0] - up(z)[1]).abs().amax(0)
    assert moved[8:, :8].max() > 0
    assert moved[:5].max() == moved[:, 8:].max() == 0


# ---- every kind together: shapes, saving, precision ------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_model_is_built_again_from_its_description_and_weights(kind, tmp_path):
    vae, x = model(kind).float(), binary().float()
    tree = json.loads(json.dumps(spec.describe(vae)))
    again = build_model({"model": tree}, {k: v.clone() for k, v in vae.state_dict().items()}, tmp_path)
    assert spec.describe(again) == tree
    assert torch.equal(again.trace(x).z, vae.trace(x).z)
    assert torch.equal(Quantised()(again, x).loss, Quantised()(vae, x).loss)
    assert torch.equal(lb.sample(again, 5), lb.sample(vae, 5))


def test_the_networks_and_the_objective_are_built_again():
    parts = (
        nn.ConvToGrid((1, 9, 6), (4, 6), blocks=2, activation=nn.ReLU()),
        nn.ConvFromGrid((6, 3), (9, 6), (4, 6), blocks=2, activation=nn.ReLU()),
        nn.CausalTransformer((4, 8), depth=3, num_heads=2),
        nn.ConvBlock(4, nn.ReLU()),
        nn.CausalLayer(8, 2),
        Quantised(0.4),
    )
    for part in parts:
        tree = json.loads(json.dumps(spec.describe(part)))
        assert spec.describe(spec.build(tree)) == tree
        with torch.device("meta"):
            assert spec.describe(spec.build(tree)) == tree


@pytest.mark.parametrize("kind", QUANTISERS)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_everything_stays_finite_in_every_precision(kind, precision, scale):
    vae, x = model(kind).float().train(), binary().float()
    with torch.no_grad():
        vae.encoder.head.project.weight.mul_(scale)
        vae.prior.project.weight.mul_(min(scale, 1e3))
    with autocast(precision, CPU):
        terms = Quantised()(vae, x)
    terms.loss.mean().backward()
    assert terms.loss.dtype == terms.elbo.dtype == torch.float32
    assert torch.isfinite(terms.loss).all()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())
    assert all(torch.isfinite(b).all() for b in vae.buffers())


@pytest.mark.parametrize("kind", QUANTISERS)
def test_codes_chosen_in_bf16_are_the_nearest_to_what_was_there(kind):
    vae, x = model(kind).float(), binary(64).float()
    with autocast(Precision.BF16, CPU):
        q = vae.encoder(x)
    head = vae.encoder.head
    assert q.z.dtype == torch.float32
    if kind != "fsq":
        assert torch.equal(q.codes, torch.cdist(q.raw.double(), head.codebook.double()).argmin(-1))
    assert torch.equal(head.codes_of(q.z), q.codes)


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), FreeBits(0.1), WAE(), Reconstruction()])
def test_ordinary_objectives_refuse_codes_and_name_the_one_that_works(objective):
    with pytest.raises(UsageError, match="Use the objective Quantised"):
        objective.check(model("vq"))


@pytest.mark.parametrize("head", [heads.DiagonalNormal, heads.Delta])
def test_the_quantised_objective_refuses_ordinary_models(head):
    encoder = heads.Conditional(Identity((4,)), head((4,), (2,)))
    vae = VAE(encoder, heads.Conditional(Identity((2,)), heads.Bernoulli((2,), (4,))), StandardNormal(2))
    with pytest.raises(UsageError, match=rf"{head.__name__}: use the objective ELBO"):
        Quantised().check(vae)


def test_diagnostics_over_real_z_refuse_codes_in_words():
    vae, x = model("vq", positions=1).float(), binary().float()
    source = ArraySource(x, support=Support.BINARY, scale=1.0)
    for measure in (
        lambda: annealed_evidence(vae, x),
        lambda: annealed_evidence(vae, x, Annealing(start=Start.POSTERIOR)),
        lambda: bidirectional(vae, 2),
        lambda: posterior_gap(vae, x),
        lambda: quadrature_evidence(vae, x),
        lambda: information(vae, source),
    ):
        with pytest.raises(UsageError, match="sequence of discrete codes here"):
            measure()


def test_settings_that_cannot_be_are_refused():
    for make in (
        lambda: heads.VectorQuantised((4,), (3,), 8),
        lambda: heads.VectorQuantised((4,), (3, 2), 1),
        lambda: heads.VectorQuantised((4,), (3, 2), 8, decay=1.0),
        lambda: heads.VectorQuantised((4,), (3, 2), 8, restart=1.0),
        lambda: heads.FiniteScalar((4,), (3, 2), (8, 5, 5)),
        lambda: heads.FiniteScalar((4,), (3, 2), (2, 5)),
        lambda: heads.FiniteScalar((4,), (3, 2), (513, 5)),
        lambda: AutoregressiveCodes((3,), 8),
        lambda: AutoregressiveCodes((3, 2), 8, width=10, num_heads=4),
        lambda: AutoregressiveCodes((3, 2), 8)(),
        lambda: nn.ConvFromGrid((48, 3), (28, 28), (4, 4)),
        lambda: Quantised(-1.0),
        lambda: codebook_usage(torch.tensor([[8]]), 8),
        lambda: codebook_usage(torch.zeros(0, 3, dtype=torch.long), 8),
    ):
        with pytest.raises(UsageError, match=r"\w{3}"):
            make()


def test_a_prior_over_codes_wants_an_encoder_with_the_same_codes():
    prior = AutoregressiveCodes((3, 2), num_codes=8)
    encoder = heads.Conditional(Identity((4,)), heads.VectorQuantised((4,), (3, 2), num_codes=9))
    with pytest.raises(UsageError, match=r"8 codes.* has 9"):
        prior.bind(encoder)
    with pytest.raises(UsageError, match="DiagonalNormal gives none"):
        prior.bind(heads.Conditional(Identity((4,)), heads.DiagonalNormal((4,), (3, 2))))


# ---- usage ------------------------------------------------------------------------------------------------------


@pytest.mark.verifies(lb.metrics.codebook_usage, against="closed form")
def test_perplexity_is_the_exponential_of_the_entropy():
    uniform = codebook_usage(torch.arange(12).reshape(4, 3), 20)
    assert (uniform.used, uniform.active, uniform.positions) == (12, 3, 3)
    assert math.isclose(uniform.perplexity, 12, rel_tol=1e-12)
    constant = codebook_usage(torch.full((5, 2), 7), 20)
    assert (constant.used, constant.active, constant.perplexity) == (1, 0, 1.0)
    skewed = codebook_usage(torch.tensor([[0], [0], [0], [1]]), 2)
    assert math.isclose(skewed.perplexity, math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel_tol=1e-12)
