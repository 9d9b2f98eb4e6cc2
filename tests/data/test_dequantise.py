"""Dequantised data: the levels can be had back, the noise is uniform, what is judged is fixed, and the bound holds."""

import math

import pytest
import torch
from scipy import stats

import lowerbound as lb
from lowerbound import distributions, heads, spec
from lowerbound.data import ArraySource, Binarise, Data, Dequantised, Support, View, batches, generator, open_data
from lowerbound.data.dequantise import fixed_noise
from lowerbound.errors import UsageError

CPU = torch.device("cpu")


def ramp(count):
    """Examples of all 256 levels each."""
    return ArraySource(torch.arange(256, dtype=torch.uint8).expand(count, 256).clone(), torch.arange(count))


def everything(source):
    return source.examples(torch.arange(len(source))).x


def in_three(count=1200, width=30):
    values = torch.randint(0, 256, (count, width), dtype=torch.uint8, generator=generator(0))
    return Data("toys", *(ArraySource(values, torch.arange(count)) for _ in range(3)))


WAYS = {"afresh": Dequantised, "fixed": lambda source: fixed_noise(source, 3)}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_dequantised_source_says_what_it_is_and_keeps_its_labels(way):
    source = way(ramp(5))
    assert source.support is Support.UNIT_INTERVAL
    assert source.event_shape == (256,)
    assert source.log_correction == pytest.approx(-256 * math.log(256))
    assert len(source) == 5
    (batch,) = batches(source, torch.tensor([4, 2, 0]), 8, CPU)
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (3, 256)
    assert batch.label.tolist() == [4, 2, 0]
    moved = source.to(CPU)
    assert (moved.log_correction, moved.fingerprint) == (source.log_correction, source.fingerprint)


@pytest.mark.parametrize("as_bytes", [True, False], ids=["uint8", "float"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_level_can_be_had_back_exactly(way, as_bytes):
    levels = ramp(2000)
    if not as_bytes:
        levels = ArraySource(everything(levels), support=Support.EIGHT_BIT)
    torch.manual_seed(0)
    x = everything(way(levels))
    assert torch.equal((x * 256).floor(), torch.arange(256.0).expand(2000, 256))
    assert x.max() < 1


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_noise_is_uniform_at_every_level_and_independent_between_neighbours(way):
    torch.manual_seed(0)
    noise = (everything(way(ramp(3000))) * 256).frac()
    for level in (0, 1, 100, 255):
        assert stats.kstest(noise[:, level].numpy(), "uniform").pvalue > 1e-4
    flat = noise.double()
    assert abs(float(((flat[:, 1:] - 0.5) * (flat[:, :-1] - 0.5)).mean())) < 5 / 12 / math.sqrt(flat[:, 1:].numel())
    assert abs(float(((flat[1:] - 0.5) * (flat[:-1] - 0.5)).mean())) < 5 / 12 / math.sqrt(flat[1:].numel())


def test_training_noise_is_afresh_and_follows_the_global_generator():
    source = Dequantised(ramp(4))
    torch.manual_seed(7)
    first, second = everything(source), everything(source)
    torch.manual_seed(7)
    assert torch.equal(everything(source), first)
    assert not torch.equal(first, second)
    assert source.gather(torch.arange(2)).x.dtype == torch.uint8, "one byte a value travels"


def test_fixed_noise_is_the_same_at_every_look_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    untouched = torch.rand(4)
    torch.manual_seed(0)
    source = fixed_noise(ramp(2100), 1)
    assert torch.equal(torch.rand(4), untouched)
    whole = everything(source)
    assert torch.equal(everything(source), whole)
    assert torch.equal(everything(fixed_noise(ramp(2100), 1)), whole)
    assert torch.equal(everything(fixed_noise(ramp(2100).slice(0, 2000), 1)), whole[:2000])
    assert not torch.equal(everything(fixed_noise(ramp(2100), 2)), whole)
    thousands = (whole[:1000] * 256).frac(), (whole[1000:2000] * 256).frac()
    assert not torch.equal(*thousands)


def test_nothing_dequantised_is_nothing():
    assert fixed_noise(ramp(3).slice(0, 0), 0).values.shape == (0, 256)


@pytest.mark.parametrize("support", [s for s in Support if s is not Support.EIGHT_BIT])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_only_levels_can_be_dequantised(way, support):
    with pytest.raises(UsageError, match=f"support {support.value}"):
        way(ArraySource(torch.ones(4, 3), support=support))


# the splits of a data set


def test_training_is_afresh_and_what_is_judged_is_fixed_and_each_split_has_its_own():
    data = in_three().dequantised(seed=5)
    assert data.support is Support.UNIT_INTERVAL
    assert not torch.equal(everything(data.train), everything(data.train))
    assert torch.equal(everything(data.valid), everything(data.valid))
    assert not torch.equal(everything(data.valid), everything(data.test))
    again, other = in_three().dequantised(seed=5), in_three().dequantised(seed=6)
    assert again.test.fingerprint == data.test.fingerprint
    assert other.test.fingerprint != data.test.fingerprint
    assert {s.log_correction for s in (data.train, data.valid, data.test)} == {-30 * math.log(256)}


def test_data_without_validation_are_dequantised_too():
    data = in_three().joined().dequantised()
    assert data.valid is None
    assert len(data.train) == 2400
    with pytest.raises(UsageError, match="dequantised"):
        in_three().dequantised().joined()


def test_dequantised_data_are_not_dequantised_or_binarised_again():
    data = in_three().dequantised(seed=5)
    assert data.binarised(Binarise.NONE) is data
    with pytest.raises(UsageError, match="were dequantised"):
        data.binarised(Binarise.DYNAMIC)
    with pytest.raises(UsageError, match="unit-interval"):
        data.dequantised()
    with pytest.raises(UsageError, match="binary"):
        in_three().binarised(Binarise.THRESHOLD).dequantised()


def test_a_saved_run_opens_its_data_in_the_same_way_again():
    data = open_data("mnist-5k", num_valid=100).dequantised(seed=9)
    view = spec.build(spec.describe(data.view))
    assert view == data.view == View(num_valid=100, seed=9, dequantise=True)
    again = view.of("mnist-5k")
    assert again.view == view
    for name in ("train", "valid", "test"):
        assert again.split(name).fingerprint == data.split(name).fingerprint
    assert isinstance(again.train, Dequantised)


def test_a_view_from_before_dequantisation_still_opens():
    tree = spec.describe(View())
    del tree["dequantise"]
    assert spec.build(tree) == View()


# the bound


def test_the_dequantised_bound_is_below_the_exact_log_probability_and_near_it():
    """A normal density of known parameters, whose probability of every level is a difference of two Phi."""
    loc, scale = 0.4, 0.01  # narrow, so that the density changes much within a level
    edges = torch.arange(257).double() / 256
    cdf = torch.from_numpy(stats.norm.cdf(edges.numpy(), loc, scale))
    log_probability = cdf.diff().log()
    draws = 40_000
    torch.manual_seed(0)
    p = distributions.DiagonalNormal(
        torch.full((256,), loc).double(), torch.full((256,), math.log(scale)).double(), event_ndim=0
    )
    log_p = p.log_prob(Dequantised(ramp(draws)).examples(torch.arange(draws)).x.double())
    bound = log_p.mean(0) - math.log(256)
    error = log_p.std(0) / math.sqrt(draws)
    seen = torch.isfinite(log_probability) & (log_probability > -100)
    assert seen.sum() > 50
    gap = (log_probability - bound)[seen]
    assert (gap > -5 * error[seen]).all()
    # The gap is half the variance of log p within a level, to second order: it is there, and it is no more.
    near = log_probability > -12
    half_variance = 0.5 * log_p.var(0)[near]
    torch.testing.assert_close((log_probability - bound)[near], half_variance, atol=0.02, rtol=0.1)
    assert gap.max() > 0.05


def test_the_bound_is_tight_for_a_density_that_is_constant_within_each_level():
    """The uniform density gives 256^-D to every picture: 8 bits a dimension exactly, as a uniform categorical does."""
    values = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=generator(0))
    levels = ArraySource(values)
    density = lb.evaluate(indifferent(heads.ContinuousBernoulli), fixed_noise(levels, 0), num_samples=5)
    probability = lb.evaluate(indifferent(heads.Categorical), levels, num_samples=5)
    assert density.log_px == pytest.approx(0, abs=1e-4)
    assert probability.log_px == pytest.approx(-16 * math.log(256), abs=1e-3)
    assert density.bits_per_dim == pytest.approx(8, abs=1e-5)
    assert probability.bits_per_dim == pytest.approx(8, abs=1e-5)
    assert density.is_likelihood
    assert probability.is_likelihood
    assert probability.notes == ()
    (note,) = density.notes
    assert "dequantised" in note
    assert f"{-16 * math.log(256):.3f}" in note
    assert density.elbo == pytest.approx(density.log_px, abs=1e-4), "the bound stays the density's own"


def test_without_dequantisation_the_remark_is_that_of_a_density_at_levels():
    levels = ArraySource(torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=generator(0)))
    result = lb.evaluate(indifferent(heads.ContinuousBernoulli), levels, num_samples=5)
    assert result.bits_per_dim == pytest.approx(0, abs=1e-5)
    (note,) = result.notes
    assert "without dequantisation" in note


def test_a_density_and_the_probability_it_was_made_from_agree_in_bits():
    """One logistic for every pixel, as a density of dequantised levels and as the probability of the levels."""
    loc, log_scale = 0.45, -3.0
    drawn = 115 + 20 * torch.randn(4000, 9, generator=generator(0))
    source = ArraySource(drawn.clamp(0, 255).to(torch.uint8))
    x = everything(fixed_noise(source, 0)).double()
    standard = (x - loc) * math.exp(-log_scale)
    log_density = -standard - log_scale - 2 * torch.nn.functional.softplus(-standard)
    edges = (torch.arange(257).double() / 256 - loc) * math.exp(-log_scale)
    log_probability = torch.sigmoid(edges).diff().log()[source.values.long()]
    bits = [-v.mean().item() / math.log(2) for v in (log_density - math.log(256), log_probability)]
    assert bits[0] == pytest.approx(bits[1], abs=5e-3)
    assert bits[0] > bits[1] - 1e-3


def indifferent(head):
    """A VAE whose decoder says the same of every z, and whose posterior is the prior: log p(x) is exact."""
    down, up = lb.nn.MLP((1, 4, 4), (4,)), lb.nn.MLP((2,), (4,))
    vae = lb.VAE(
        heads.Conditional(down, heads.DiagonalNormal((4,), (2,))),
        heads.Conditional(up, head((4,), (1, 4, 4))),
        lb.priors.StandardNormal(2),
    )
    with torch.no_grad():
        for weights in (*vae.encoder.head.parameters(), *vae.decoder.head.parameters()):
            weights.zero_()
    return vae.eval()


def test_a_run_of_dequantised_real_digits_learns_and_is_below_eight_bits():
    data = open_data("mnist-5k", num_valid=100).dequantised()
    few = Data("few", data.train, None, fixed_noise(open_data("mnist-5k").test, 2).slice(0, 100))
    down, up = lb.nn.MLP((1, 28, 28), (64,)), lb.nn.MLP((8,), (64,))
    vae = lb.VAE(
        heads.Conditional(down, heads.DiagonalNormal((64,), (8,))),
        heads.Conditional(up, heads.HeteroscedasticNormal((64,), (1, 28, 28))),
        lb.priors.StandardNormal(8),
    )
    lb.fit(vae, few, lb.ELBO(), lb.Training(epochs=2, batch_size=128), device=CPU)
    result = lb.evaluate(vae, few.test, num_samples=10)
    assert 0 < result.bits_per_dim < 8
    assert result.log_px > 0, "a density's logarithm may be above 0; the probability's is not"
    expected = -(result.log_px - 784 * math.log(256)) / (784 * math.log(2))
    assert result.bits_per_dim == pytest.approx(expected)
