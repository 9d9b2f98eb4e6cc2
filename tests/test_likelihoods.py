"""Likelihoods: probabilities sum to one, densities integrate to one, and each head knows the data it is for."""

import itertools
import math

import mpmath
import pytest
import torch
from oracle import Identity
from parts import LIKELIHOODS, likelihood_named
from scipy import stats
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import NegativeBinomial as TorchNegativeBinomial

import lowerbound as lb
from lowerbound import discrete, heads, spec
from lowerbound.data import Support, generator
from lowerbound.errors import UsageError
from lowerbound.training import Precision, autocast

LEVELS = torch.arange(256, dtype=torch.float64) / 255
LOCS = [-1e3, -0.4, 0.0, 0.2, 77 / 255, 77.5 / 255, 1.0, 1e3]
LOG_SCALES = [-10.0, -5.0, -2.0, 0.0, 3.0, 10.0]


def grid(dtype=torch.float64):
    pairs = torch.tensor(list(itertools.product(LOCS, LOG_SCALES)), dtype=dtype)
    return pairs[:, 0], pairs[:, 1]


def chi_squared(counts, probability):
    """The p-value of counts under probabilities; cells that expect fewer than 5 are put together."""
    expected = counts.sum() * probability
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    if len(expected) == 1:
        return 1.0
    return stats.chisquare(observed.numpy(), expected.numpy() * observed.sum().item() / expected.sum().item()).pvalue


# discretised logistic


@pytest.mark.verifies(lb.heads.DiscretisedLogistic, against="enumeration")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_the_discretised_logistic_sums_to_one_at_every_scale(dtype, tolerance):
    p = discrete.DiscretisedLogistic(*grid(dtype), event_ndim=0)
    total = p.log_prob(LEVELS.to(dtype)[:, None]).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), atol=tolerance, rtol=0)


@pytest.mark.verifies(lb.heads.DiscretisedLogistic, against="scipy")
def test_the_discretised_logistic_is_the_difference_of_two_distribution_functions():
    loc, log_scale = torch.tensor(0.3).double(), torch.tensor(-2.0).double()
    edges = (torch.arange(1, 256).double() - 0.5) / 255
    cdf = stats.logistic.cdf(edges.numpy(), loc=loc.item(), scale=math.exp(-2))
    expected = torch.tensor([*cdf, 1.0]).double().diff(prepend=torch.zeros(1).double())
    found = discrete.DiscretisedLogistic(loc, log_scale, 0).log_prob(LEVELS)
    torch.testing.assert_close(found, expected.log(), atol=1e-10, rtol=0)


@pytest.mark.verifies(lb.heads.DiscretisedLogistic, against="many digits")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("level", [0, 1, 77, 128, 255])
def test_the_discretised_logistic_keeps_its_digits_where_the_difference_loses_them(level, dtype):
    """Against the difference itself in 400 digits; many of these probabilities are far below the least float64."""
    locs, log_scales = grid(dtype)
    x = torch.tensor(level / 255, dtype=dtype)
    found = discrete.DiscretisedLogistic(locs, log_scales, 0).log_prob(x)
    assert (found <= 0).all()
    with mpmath.workdps(400):
        edges = [mpmath.mpf(2 * level - 1) / 510, mpmath.mpf(2 * level + 1) / 510]
        for log_p, loc, log_scale in zip(found.tolist(), locs.tolist(), log_scales.tolist(), strict=True):
            a, b = ((edge - mpmath.mpf(loc)) / mpmath.exp(log_scale) for edge in edges)
            if a > 0:  # the two functions' tails, not their distances from 1
                a, b = -b, -a
            low_open, high_open = (level == 255, level == 0) if a < 0 < edges[0] - loc else (level == 0, level == 255)
            low = 0 if low_open else 1 / (1 + mpmath.exp(-a))
            high = 1 if high_open else 1 / (1 + mpmath.exp(-b))
            # x - loc is rounded once before it is divided by the scale.
            rounding = torch.finfo(dtype).eps * (1 + abs(loc)) * math.exp(-log_scale)
            exact = float(mpmath.log(high - low))
            assert log_p == pytest.approx(exact, rel=1e-6, abs=4 * rounding + 1e-6), (loc, log_scale)


def test_a_tiny_scale_makes_a_point_mass_at_the_nearest_level():
    for loc, nearest in ((77 / 255, 77), (77.3 / 255, 77), (-3.0, 0), (9.0, 255)):
        p = discrete.DiscretisedLogistic(torch.tensor(loc), torch.tensor(-10.0), event_ndim=0)
        log_p = p.log_prob(LEVELS.float())
        assert log_p[nearest].item() == pytest.approx(0, abs=1e-5)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
        assert p.mean.item() == pytest.approx(nearest / 255, abs=1e-6)
        assert (p.sample((100,)) * 255).round().unique().tolist() == [nearest]


def test_values_off_the_levels_are_taken_to_the_nearest():
    p = discrete.DiscretisedLogistic(torch.tensor(0.3), torch.tensor(-2.0), event_ndim=0)
    torch.testing.assert_close(p.log_prob(torch.tensor(76.6 / 255)), p.log_prob(torch.tensor(77 / 255)))


# what all densities of levels have in common


def a_mixture():
    draws = generator(5)
    logits, loc = (torch.randn(4, 3, generator=draws, dtype=torch.float64) for _ in range(2))
    log_scale = torch.tensor([-10.0, -3.0, 0.5]).double().expand(4, 3)
    return discrete.DiscretisedLogisticMixture(logits, 0.5 + loc, log_scale, event_ndim=0)


LEVEL_FAMILIES = {
    "discretised-logistic": lambda: discrete.DiscretisedLogistic(
        torch.tensor([-0.2, 0.3, 0.5, 2.0]).double(), torch.tensor([-2.0, -4.0, 1.0, -1.0]).double(), event_ndim=0
    ),
    "mixture": a_mixture,
    "categorical": lambda: discrete.Categorical(
        4 * torch.randn(4, 256, generator=generator(6), dtype=torch.float64), event_ndim=0
    ),
}


@pytest.mark.verifies(
    lb.heads.Categorical, lb.heads.DiscretisedLogistic, lb.heads.DiscretisedLogisticMixture, against="enumeration"
)
@pytest.mark.parametrize("family", LEVEL_FAMILIES.values(), ids=LEVEL_FAMILIES)
def test_levels_sum_to_one_and_mean_and_samples_follow_their_probabilities(family):
    p = family()
    probability = p.log_prob(LEVELS[:, None]).exp()  # [256, 4]
    torch.testing.assert_close(probability.sum(0), torch.ones(4).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(p.mean, (probability * LEVELS[:, None]).sum(0), atol=1e-10, rtol=0)
    torch.manual_seed(0)
    draws = p.sample((40_000,))
    assert draws.shape == (40_000, 4)
    levels = (255 * draws).round()
    torch.testing.assert_close(draws, levels / 255)
    for column in range(4):
        counts = torch.bincount(levels[:, column].long(), minlength=256).double()
        assert chi_squared(counts, probability[:, column]) > 1e-4


@pytest.mark.parametrize("family", LEVEL_FAMILIES.values(), ids=LEVEL_FAMILIES)
def test_log_prob_sums_over_the_event_and_broadcasts_over_draws(family):
    separate, together = family(), family()
    together.__init__(*parameters(together), event_ndim=1)
    assert (together.batch_shape, together.event_shape) == ((), (4,))
    x = LEVELS[torch.randint(0, 256, (5, 2, 4), generator=generator(0))]
    torch.testing.assert_close(together.log_prob(x), separate.log_prob(x).sum(-1))
    assert together.sample((5, 2)).shape == (5, 2, 4)


def parameters(p):
    names = ("logits", "loc", "log_scale")
    return [getattr(p, name) for name in names if hasattr(p, name)]


def test_a_mixture_of_one_is_that_one_and_of_equals_as_well():
    loc, log_scale = torch.rand(7, 1).double(), torch.randn(7, 1).double()
    x = LEVELS[torch.randint(0, 256, (7,), generator=generator(0))]
    one = discrete.DiscretisedLogistic(loc[:, 0], log_scale[:, 0])
    for copies in (1, 3):
        logits = torch.randn(7, copies).double()
        many = discrete.DiscretisedLogisticMixture(logits, loc.expand(7, copies), log_scale.expand(7, copies))
        torch.testing.assert_close(many.log_prob(x), one.log_prob(x))
        torch.testing.assert_close(many.mean, one.mean)


@pytest.mark.verifies(lb.heads.Categorical, against="torch")
def test_the_categorical_is_torchs():
    logits = torch.randn(5, 3, 17).double()
    level = torch.randint(0, 17, (5, 3))
    mine = discrete.Categorical(logits).log_prob(level / 16)
    torch.testing.assert_close(mine, TorchCategorical(logits=logits).log_prob(level).sum(-1))


# counts


@pytest.mark.verifies(lb.heads.Poisson, against="scipy")
@pytest.mark.parametrize("log_rate", [-16.6, -3.0, 0.0, 4.0, 9.0])
def test_the_poisson_is_scipys_and_sums_to_one(log_rate):
    p = discrete.Poisson(torch.tensor(log_rate, dtype=torch.float64), event_ndim=0)
    k = torch.arange(20_000).double()
    torch.testing.assert_close(
        p.log_prob(k), torch.from_numpy(stats.poisson.logpmf(k.numpy(), math.exp(log_rate))), atol=1e-7, rtol=1e-12
    )
    assert p.log_prob(k).exp().sum().item() == pytest.approx(1, abs=1e-8)
    assert (p.log_prob(k).exp() * k).sum().item() == pytest.approx(p.mean.item(), rel=1e-7)


# The last two have much of their mass at 0 and the rest far away.
MEANS_AND_TOTALS = [(0.0, 0.0), (3.0, 10.0), (-5.0, 10.0), (2.0, 2.30), (2.0, 2.31), (1.0, -2.0), (-16.6, -10.0)]


@pytest.mark.verifies(lb.heads.NegativeBinomial, against="torch")
@pytest.mark.parametrize(("log_mean", "log_total"), MEANS_AND_TOTALS)
def test_the_negative_binomial_is_torchs_and_sums_to_one(log_mean, log_total):
    m, r = torch.tensor(log_mean).double(), torch.tensor(log_total).double()
    p = discrete.NegativeBinomial(m, r, event_ndim=0)
    k = torch.arange(5_000).double()
    theirs = TorchNegativeBinomial(r.exp(), logits=m - r, validate_args=False).log_prob(k)
    torch.testing.assert_close(p.log_prob(k), theirs, atol=2e-9, rtol=1e-11)
    assert p.log_prob(k).exp().sum().item() == pytest.approx(1, abs=1e-7)
    assert (p.log_prob(k).exp() * k).sum().item() == pytest.approx(p.mean.item(), rel=1e-6)
    variance = (p.log_prob(k).exp() * (k - p.mean) ** 2).sum().item()
    assert variance == pytest.approx(m.exp().item() + (2 * m - r).exp().item(), rel=1e-5)


@pytest.mark.parametrize("log_total", [-10.0, 0.0, 2.302, 2.303, 6.0, 10.0, 16.0])
def test_the_negative_binomial_keeps_its_digits_in_float32(log_total):
    """Torch's arithmetic at the same float32 parameters loses the second decimal at a total count of e^10."""
    log_mean, k = torch.linspace(-3, 5, 9)[:, None], torch.arange(300).float()
    found = discrete.NegativeBinomial(log_mean, torch.full_like(log_mean, log_total), 0).log_prob(k)
    exact = discrete.NegativeBinomial(log_mean.double(), torch.full_like(log_mean, log_total).double(), 0)
    torch.testing.assert_close(found.double(), exact.log_prob(k.double()), atol=2e-3, rtol=1e-6)
    if log_total == 10:
        rate = TorchNegativeBinomial(torch.tensor(log_total).exp(), logits=log_mean - log_total, validate_args=False)
        assert (rate.log_prob(k).double() - exact.log_prob(k.double())).abs().max() > 1e-2


def test_the_negative_binomial_becomes_the_poisson_as_its_total_count_grows():
    log_mean, k = torch.tensor([-2.0, 0.0, 3.0])[:, None].double(), torch.arange(60).double()
    poisson = discrete.Poisson(log_mean, 0).log_prob(k)
    gaps = [
        (discrete.NegativeBinomial(log_mean, torch.full_like(log_mean, t), 0).log_prob(k) - poisson).abs().max().item()
        for t in (5.0, 10.0, 20.0)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-5


@pytest.mark.parametrize(
    "p",
    [
        discrete.Poisson(torch.tensor([-1.0, 1.5, 4.0]), event_ndim=0),
        discrete.NegativeBinomial(torch.tensor([-1.0, 1.5, 3.0]), torch.tensor([0.0, 1.0, -0.5]), event_ndim=0),
    ],
    ids=["poisson", "negative-binomial"],
)
def test_drawn_counts_follow_their_probabilities(p):
    torch.manual_seed(0)
    draws = p.sample((40_000,))
    top = int(draws.max()) + 1
    probability = p.log_prob(torch.arange(top).float()[:, None]).exp().double()
    for column in range(3):
        counts = torch.bincount(draws[:, column].long(), minlength=top).double()
        assert chi_squared(counts, probability[:, column]) > 1e-4


# heads


@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_a_head_is_built_again_from_its_description(make):
    head = make((3,), (1, 2, 2))
    tree = spec.describe(head)
    with torch.device("meta"):
        again = spec.build(tree)
    assert type(again) is type(head)
    assert spec.describe(again) == tree
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in head.state_dict().items()}
    assert (again.exact, again.relaxed) == (head.exact, head.relaxed)


@pytest.mark.parametrize("support", Support)
@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_on_every_support_a_head_is_exact_or_says_why_not_or_names_heads_that_are(make, support):
    head = make((3,), (2,))
    assert not head.exact & set(head.relaxed)
    if support in head.exact:
        head.check(support)
        assert len(head.caveats.get(support, "enough words said by saying nothing")) > 20
    elif support in head.relaxed:
        head.check(support)
        assert "likelihood" in head.relaxed[support]
    else:
        with pytest.raises(UsageError) as caught:
            head.check(support)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"A {type(head).__name__} likelihood means nothing")
        assert support.value in message
        named = message.split("These do: ")[1].split(".")[0].split(", ")
        public = [h for h in vars(heads).values() if isinstance(h, type) and issubclass(h, heads.Likelihood)]
        assert named == sorted(h.__name__ for h in public if support in getattr(h, "exact", ()))
        for name in named:
            likelihood_named(name).check(support)


def test_what_is_accepted_where_is_what_was_decided():
    found = {name: sorted(s.value for s in make((3,), (2,)).exact) for name, make in LIKELIHOODS.items()}
    density = ["eight-bit", "real", "unit-interval"]
    assert found == {
        "bernoulli": ["binary"],
        "continuous-bernoulli": ["eight-bit", "unit-interval"],
        **{name: density for name in LIKELIHOODS if name.startswith("normal")},
        **{name: ["eight-bit"] for name in ("discretised-logistic", "mixture", "categorical")},
        "categorical-17": [],
        "categorical-2": ["binary"],
        **{name: ["count"] for name in ("poisson", "negative-binomial")},
    }
    for name, make in LIKELIHOODS.items():
        head = make((3,), (2,))
        is_density = not isinstance(head.forward(torch.zeros(1, 3), torch.Size([1])), discrete._Independent)
        has_remark = Support.EIGHT_BIT in {**head.caveats, **head.relaxed}
        assert (is_density and Support.EIGHT_BIT in {*head.exact, *head.relaxed}) == has_remark, name


@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)
@pytest.mark.parametrize("event", [(6,), (3, 2, 2)])
def test_every_head_starts_near_any_mean_even_one_at_an_end(make, event):
    head = make((4,), event)
    mean = torch.tensor([0.0, 1e-4, 0.13, 0.5, 0.97, 1.0]).repeat(2).reshape(-1)[: math.prod(event)].reshape(event)
    head.start_at(mean)
    with torch.no_grad():
        head.project.weight.zero_()
        found = head(torch.zeros(1, 4), torch.Size([1])).mean[0]
    # A value that is never seen gets 0.005 at the least.
    torch.testing.assert_close(found, mean, atol=0.0055, rtol=0)


def test_on_a_picture_every_channel_starts_at_its_own_mean():
    mean = torch.rand(3, 4, 4, generator=generator(0))
    for make in LIKELIHOODS.values():
        head = make((5, 4, 4), (3, 4, 4))
        assert head.on_picture
        head.start_at(mean)
        with torch.no_grad():
            head.project.weight.zero_()
            found = head(torch.zeros(1, 5, 4, 4), torch.Size([1])).mean[0]
        torch.testing.assert_close(found, mean.mean((1, 2), keepdim=True).expand(3, 4, 4), atol=1e-4, rtol=0)


def test_the_components_of_a_mixture_start_apart():
    head = heads.DiscretisedLogisticMixture((2,), (3,), num_components=5)
    head.start_at(torch.tensor([0.1, 0.5, 0.99]))
    with torch.no_grad():
        head.project.weight.zero_()
        p = head(torch.zeros(1, 2), torch.Size([1]))
    assert (p.loc[0].diff(dim=-1) > 1e-3).all()


def value_for(head, count=6):
    x = torch.rand(count, *head.event_shape, generator=generator(1))
    return (300 * x).round() if Support.COUNT in head.exact else (x * 16).round() / 16


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_extreme_features_leave_everything_finite(make, size, precision):
    head = make((4,), (5,))
    features = (size * torch.randn(6, 4, generator=generator(2))).requires_grad_()
    with autocast(precision, torch.device("cpu")):
        p = head(features, torch.Size([6]))
        log_p = p.log_prob(value_for(head))
    assert log_p.dtype == torch.float32
    log_p.sum().backward()
    gradients = [features.grad, *(w.grad for w in head.parameters())]
    assert torch.isfinite(log_p).all()
    assert all(torch.isfinite(g).all() for g in gradients)
    assert torch.isfinite(p.mean).all()
    assert torch.isfinite(p.sample()).all()


@pytest.mark.verifies(
    lb.heads.Bernoulli,
    lb.heads.CalibratedNormal,
    lb.heads.Categorical,
    lb.heads.ContinuousBernoulli,
    lb.heads.DiscretisedLogistic,
    lb.heads.DiscretisedLogisticMixture,
    lb.heads.HeteroscedasticNormal,
    lb.heads.NegativeBinomial,
    lb.heads.Normal,
    lb.heads.NormalPerDimension,
    lb.heads.Poisson,
    against="finite differences",
)
@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_gradients_are_those_of_finite_differences(make):
    head = make((2,), (3,)).double().eval()
    x = value_for(head).double()[:2]
    features = torch.randn(2, 2, generator=generator(3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: head(f, torch.Size([2])).log_prob(x), (features,))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: heads.DiscretisedLogisticMixture((2,), (3,), num_components=0), "num_components"),
        (lambda: heads.Categorical((2,), (3,), num_levels=1), "num_levels"),
        (lambda: heads.Categorical((2,), (3,), num_levels=0), "num_levels"),
        (lambda: heads.CalibratedNormal((2,), (3,), decay=1.0), "decay"),
        (lambda: heads.CalibratedNormal((2,), (3,), decay=-0.1), "decay"),
    ],
)
def test_impossible_arguments_are_refused(make, word):
    with pytest.raises(UsageError, match=word):
        make()


# the scales of a normal likelihood


@pytest.mark.verifies(lb.heads.NormalPerDimension, against="closed form")
def test_a_scale_for_each_dimension_is_learned_for_each():
    head = heads.NormalPerDimension((2,), (3,)).double()
    spread = torch.tensor([0.1, 1.0, 5.0]).double()
    x = spread * torch.randn(500, 3, generator=generator(0), dtype=torch.float64)
    with torch.no_grad():
        head.project.weight.zero_()
        head.project.bias.zero_()
    features = torch.zeros(500, 2).double()
    maximise([head.log_scale], lambda: head(features, torch.Size([500])).log_prob(x).mean())
    torch.testing.assert_close(head.log_scale.exp().detach(), x.square().mean(0).sqrt(), atol=1e-6, rtol=0)


@pytest.mark.verifies(lb.heads.HeteroscedasticNormal, against="torch")
def test_a_predicted_scale_differs_between_examples():
    head = heads.HeteroscedasticNormal((2,), (3,))
    p = head(torch.randn(4, 2), torch.Size([4]))
    assert p.stddev.unique().numel() == 12
    x = torch.rand(4, 3)
    torch.testing.assert_close(p.log_prob(x), torch.distributions.Normal(p.mean, p.stddev).log_prob(x).sum(-1))


def maximise(weights, function):
    optimiser = torch.optim.LBFGS(
        weights, max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=0
    )

    def step():
        optimiser.zero_grad()
        loss = -function()
        loss.backward()
        return loss

    optimiser.step(step)


@pytest.mark.verifies(lb.heads.CalibratedNormal, against="closed form")
@pytest.mark.parametrize("draws", [(), (4,)])
def test_in_training_sigma_is_the_one_that_makes_the_batch_most_likely(draws):
    """Its log-likelihood is -D/2 (log(2 pi MSE) + 1) on average, and no other shared scale's is higher."""
    head = heads.CalibratedNormal((2,), (5,)).double().train()
    batch = torch.Size([*draws, 7])
    features = torch.randn(batch.numel(), 2, generator=generator(0), dtype=torch.float64)
    x = torch.rand(7, 5, generator=generator(1), dtype=torch.float64)
    p = head(features, batch)
    log_p = p.log_prob(x)
    assert log_p.shape == batch
    mse = (x - p.mean).square().mean()
    assert log_p.mean().item() == pytest.approx(-2.5 * (math.log(2 * math.pi * mse.item()) + 1), abs=1e-10)
    for scale in mse.sqrt().item() * torch.linspace(0.5, 2, 31, dtype=torch.float64):
        other = torch.distributions.Normal(p.mean, scale).log_prob(x).sum(-1).mean()
        assert other <= log_p.mean() + 1e-9


def test_the_gradient_with_sigma_held_constant_is_the_one_through_it():
    head = heads.CalibratedNormal((2,), (5,)).double().train()
    features = torch.randn(7, 2, generator=generator(0), dtype=torch.float64)
    x = torch.rand(7, 5, generator=generator(1), dtype=torch.float64)
    weights = list(head.parameters())
    held = torch.autograd.grad(head(features, torch.Size([7])).log_prob(x).mean(), weights)
    loc = head(features, torch.Size([7])).mean
    sigma = (x - loc).square().mean().sqrt()
    through = torch.autograd.grad(torch.distributions.Normal(loc, sigma).log_prob(x).sum(-1).mean(), weights)
    for a, b in zip(held, through, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.verifies(lb.heads.CalibratedNormal, against="quadrature")
def test_at_evaluation_sigma_is_a_running_one_and_an_examples_density_is_proper_and_its_own():
    head = heads.CalibratedNormal((2,), (1,), decay=0.9).double()
    features = torch.randn(8, 2, generator=generator(0), dtype=torch.float64)
    x = torch.rand(8, 1, generator=generator(1), dtype=torch.float64)
    errors = []
    for scale in (0.1, 0.3, 1.0):
        p = head.train()(features, torch.Size([8]))
        p.log_prob(scale * x)
        errors.append((scale * x - p.mean).square().mean())
    # Fewer updates than the decay remembers: the plain mean of what was seen, without a trace of the initial 1.
    torch.testing.assert_close(head.variance, torch.stack(errors).mean().detach())
    before = {k: v.clone() for k, v in head.state_dict().items()}
    head.eval()
    together = head(features, torch.Size([8])).log_prob(x)
    for i in range(8):
        alone = head(features[i : i + 1], torch.Size([1])).log_prob(x[i : i + 1])
        torch.testing.assert_close(together[i], alone[0])
    line = torch.linspace(-20, 20, 40_001, dtype=torch.float64)[:, None]
    density = head(features[:1], torch.Size([1])).log_prob(line[:, None]).exp()[:, 0]
    assert torch.trapezoid(density, line[:, 0]).item() == pytest.approx(1, abs=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items()), "evaluation changed the head"


def test_the_running_sigma_forgets_as_it_is_told_to():
    head = heads.CalibratedNormal((1,), (1,), decay=0.5)
    variances = torch.tensor([4.0, 2.0, 1.0, 8.0])
    expected = variances[0]
    for update, variance in enumerate(variances, 1):
        head._observe(variance)
        weight = max(1 / update, 0.5)
        expected = (1 - weight) * expected + weight * variance
    torch.testing.assert_close(head.variance, expected)


def test_a_perfect_reconstruction_stays_finite():
    head = heads.CalibratedNormal((1,), (3,))
    with torch.no_grad():
        head.project.weight.zero_()
        head.project.bias.zero_()
    for mode in (True, False):
        head.train(mode)
        log_p = head(torch.zeros(4, 1), torch.Size([4])).log_prob(torch.zeros(4, 3))
        torch.testing.assert_close(log_p, torch.full((4,), 3 * (10 - 0.5 * math.log(2 * math.pi))))


def small_vae(event, head):
    down, up = lb.nn.MLP(event, (32,)), lb.nn.MLP((4,), (32,))
    return lb.VAE(
        encoder=heads.Conditional(down, heads.DiagonalNormal((32,), (4,))),
        decoder=heads.Conditional(up, head((32,), event)),
        prior=lb.priors.StandardNormal(4),
    )


def test_on_real_digits_the_optimal_sigma_is_what_a_learned_one_converges_to():
    data = lb.open_data("digits")
    torch.manual_seed(0)
    vae = small_vae(data.event_shape, heads.CalibratedNormal)
    lb.fit(vae, data, lb.ELBO(), lb.Training(epochs=15, batch_size=64, lr=3e-3), device=torch.device("cpu"))
    running = vae.likelihood.variance.sqrt().item()
    x = data.train.examples(torch.arange(len(data.train))).x
    with torch.no_grad():
        z = vae.encoder(x).rsample((1,))
        residual = x - vae.decoder(z).mean
        mle = residual.double().square().mean().sqrt().item()
    # The same network and the same codes, with a scale that is learned by gradient instead.
    learned = small_vae(data.event_shape, heads.Normal)
    own = {k: v for k, v in vae.state_dict().items() if not k.endswith((".variance", ".updates"))}
    learned.load_state_dict(own | {"decoder.head.log_scale": torch.tensor(0.0)})
    scale = learned.likelihood.log_scale
    maximise([scale], lambda: learned.decoder(z).log_prob(x).mean())
    assert scale.exp().item() == pytest.approx(mle, rel=1e-4)
    vae.train()
    vae.likelihood.decay = 0.0
    vae.decoder(z).log_prob(x)
    assert vae.likelihood.variance.sqrt().item() == pytest.approx(mle, rel=1e-5)
    # The running value is of the last twenty batches, so of weights a little older.
    assert running == pytest.approx(mle, rel=0.05)
    assert 0.05 < mle < 0.3


def test_counts_are_learned_where_their_variance_exceeds_their_mean():
    """One negative binomial, without z: maximum likelihood finds the mean and the dispersion that made the data."""
    torch.manual_seed(0)
    made = discrete.NegativeBinomial(torch.tensor([2.0]).double(), torch.tensor([0.7]).double())
    x = made.sample((20_000,))
    head = heads.NegativeBinomial((1,), (1,)).double()
    head.start_at(x.mean(0))
    features = torch.zeros(len(x), 1).double()
    maximise(list(head.parameters()), lambda: head(features, torch.Size([len(x)])).log_prob(x).mean())
    p = head(features[:1], torch.Size([1]))
    assert p.log_mean.item() == pytest.approx(2.0, abs=0.03)
    assert p.log_total.item() == pytest.approx(0.7, abs=0.05)


def test_a_vae_of_counts_trains_and_is_judged():
    torch.manual_seed(0)
    rate = torch.rand(300, 1) * torch.tensor([1.0, 5.0, 20.0, 80.0])
    source = lb.ArraySource(torch.poisson(rate), support=Support.COUNT)
    vae = small_vae((4,), heads.Poisson)
    vae.likelihood.start_at(lb.data.mean(source))
    before = lb.evaluate(vae, source, num_samples=10).log_px
    data = lb.Data("counts", source, None, source)
    lb.fit(vae, data, lb.ELBO(), lb.Training(epochs=30, batch_size=50, lr=5e-3), device=torch.device("cpu"))
    after = lb.evaluate(vae, source, num_samples=10)
    assert after.is_likelihood
    assert not any("likelihood" in note or "density" in note for note in after.notes), "it is one of counts"
    assert after.log_px > before + 5
    assert after.log_px < 0


def test_identity_features_reach_the_levels_unchanged():
    """The order of a mixture's raw outputs: locations, then scales, then weights, for every value."""
    head = heads.DiscretisedLogisticMixture((12,), (2,), num_components=2)
    with torch.no_grad():
        head.project.weight.copy_(torch.eye(12))
        head.project.bias.zero_()
    decoder = heads.Conditional(Identity((12,)), head)
    p = decoder(torch.arange(12.0)[None])
    assert p.loc[0].tolist() == [[0, 2], [1, 3]]
    assert (p.log_scale[0] + 2).tolist() == [[4, 6], [5, 7]]
    assert p.logits[0].tolist() == [[8, 10], [9, 11]]
