"""The contract grid: every part goes with every other, and each combination keeps the same promises."""

import functools
import itertools
import json
import math

import pytest
import torch

from lowerbound import heads, nn, spec
from lowerbound.checkpoint import build_model
from lowerbound.data import Support, generator
from lowerbound.errors import UsageError
from lowerbound.evidence import log_evidence
from lowerbound.model import VAE
from lowerbound.objectives import (
    CIWAE,
    DIPVAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    WAE,
    BetaTC,
    Capacity,
    DIPKind,
    DoublyReparameterised,
    FreeBits,
    InfoVAE,
    InverseMultiquadratic,
    MinibatchStratified,
    Objective,
    Reconstruction,
    StickingTheLanding,
)
from lowerbound.priors import StandardNormal
from lowerbound.training import Precision, autocast

LATENT = 3
EVENTS = {"vector": (7,), "picture": (1, 9, 6), "colour": (3, 8, 8)}
LIKELIHOODS = {
    "bernoulli": heads.Bernoulli,
    "continuous-bernoulli": heads.ContinuousBernoulli,
    "normal": heads.Normal,
    "normal-per-dimension": heads.NormalPerDimension,
    "normal-heteroscedastic": heads.HeteroscedasticNormal,
    "normal-calibrated": heads.CalibratedNormal,
    "discretised-logistic": heads.DiscretisedLogistic,
    "discretised-logistic-mixture": functools.partial(heads.DiscretisedLogisticMixture, num_components=3),
    "categorical": heads.Categorical,
    "poisson": heads.Poisson,
    "negative-binomial": heads.NegativeBinomial,
}
COUNTS = ("poisson", "negative-binomial")
LEVELS = ("discretised-logistic", "discretised-logistic-mixture", "categorical")
POSTERIORS = {"diagonal-normal": heads.DiagonalNormal, "delta": heads.Delta}
OBJECTIVES: dict[str, Objective] = {
    "elbo": ELBO(),
    "elbo-sampled": ELBO(closed_form=False, num_samples=4),
    "elbo-beta-warmup": ELBO(beta=4, warmup=10),
    "reconstruction": Reconstruction(),
    "iwae": IWAE(3),
    "iwae-stl": IWAE(1, StickingTheLanding()),
    "iwae-dreg": IWAE(3, DoublyReparameterised()),
    "miwae": MIWAE(2, 3, DoublyReparameterised()),
    "piwae": PIWAE(2, 3),
    "piwae-dreg": PIWAE(2, 3, DoublyReparameterised()),
    "ciwae": CIWAE(0.3, 3),
    "ciwae-dreg": CIWAE(0.3, 3, DoublyReparameterised()),
    "free-bits": FreeBits(0.05),
    "free-bits-whole": FreeBits(0.5, groups=1, num_samples=2),
    "capacity": Capacity(gamma=10, capacity=5, warmup=10),
    "beta-tc": BetaTC(1000),
    "beta-tc-stratified": BetaTC(1000, alpha=0.5, beta=2, gamma=3, aggregate=MinibatchStratified()),
    "dip-means": DIPVAE(DIPKind.MEANS),
    "dip-codes": DIPVAE(DIPKind.CODES, lambda_od=1, lambda_d=2),
    "info": InfoVAE(alpha=0.5, lambda_=10),
    "wae": WAE(10, InverseMultiquadratic(scales=(0.5, 2.0))),
}
# What asks for no density, and so accepts a posterior that is a single point.
WITHOUT_DENSITY = (Reconstruction, WAE)
NETWORKS = ("mlp", "conv")


def build(event: tuple[int, ...], network: str, posterior: str, likelihood: str) -> VAE:
    if network == "mlp":
        down, up = nn.MLP(event, (16, 8)), nn.MLP((LATENT,), (8, 16))
    else:
        down, up = nn.ConvDown(event, (4, 6), 8), nn.ConvUp((LATENT,), event[1:], (4, 6), 8)
    return VAE(
        heads.Conditional(down, POSTERIORS[posterior](down.out_shape, (LATENT,))),
        heads.Conditional(up, LIKELIHOODS[likelihood](up.out_shape, event)),
        StandardNormal(LATENT),
    )


def examples(event: tuple[int, ...], likelihood: str, count: int = 5) -> torch.Tensor:
    x = torch.rand(count, *event, generator=generator(0))
    if likelihood == "bernoulli":
        return (x < 0.4).float()
    if likelihood in COUNTS:
        return (20 * x**3).round()
    return (255 * x).round() / 255 if likelihood in LEVELS else x


MODELS = [
    pytest.param(EVENTS[event], network, posterior, likelihood, id=f"{event}-{network}-{posterior}-{likelihood}")
    for event, network, posterior, likelihood in itertools.product(EVENTS, NETWORKS, POSTERIORS, LIKELIHOODS)
    if not (network == "conv" and event == "vector")
]


@pytest.mark.parametrize(("event", "network", "posterior", "likelihood"), MODELS)
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_terms_have_their_shapes_and_reach_every_weight(event, network, posterior, likelihood, objective):
    vae, x = build(event, network, posterior, likelihood), examples(event, likelihood)
    if posterior == "delta" and not isinstance(objective, WITHOUT_DENSITY):
        with pytest.raises(UsageError, match="no density"):
            objective.check(vae)
        return
    objective.check(vae)
    terms = objective(vae, x, step=5)
    assert terms.loss.shape == terms.distortion.shape == (5,)
    if posterior == "delta" or isinstance(objective, Reconstruction):
        assert terms.kl is None
        assert terms.elbo is None
    else:
        assert terms.kl.shape == terms.elbo.shape == (5,)
        torch.testing.assert_close(terms.elbo, -terms.distortion - terms.kl)
    terms.loss.mean().backward()
    assert not [name for name, p in vae.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_is_built_again_from_its_description(objective):
    tree = json.loads(json.dumps(spec.describe(objective)))
    assert spec.build(tree) == objective
    assert spec.describe(spec.build(tree)) == tree
    with torch.device("meta"):
        assert spec.build(tree) == objective


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_says_what_it_means_for_the_numbers(objective):
    said = objective.notes()
    assert all(isinstance(line, str) and len(line) > 20 for line in said)
    assert bool(said) == (objective not in (ELBO(), ELBO(closed_form=False, num_samples=4)))


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_validation_without_gradients_has_the_same_terms(objective, posterior):
    vae, x = build((7,), "mlp", posterior, "bernoulli"), examples((7,), "bernoulli")
    if posterior == "delta" and not isinstance(objective, WITHOUT_DENSITY):
        return
    torch.manual_seed(0)
    trained = objective(vae, x)
    torch.manual_seed(0)
    with torch.no_grad():
        validated = objective(vae, x)
    torch.testing.assert_close(validated.loss, trained.loss)
    assert not validated.loss.requires_grad


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_batch_of_one_is_possible(objective):
    """The last batch of an epoch may hold a single example."""
    vae, x = build((7,), "mlp", "diagonal-normal", "bernoulli"), examples((7,), "bernoulli", 1)
    terms = objective(vae, x)
    terms.loss.mean().backward()
    assert torch.isfinite(terms.loss).all()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


@pytest.mark.parametrize(("event", "network", "posterior", "likelihood"), MODELS)
def test_a_model_is_built_again_from_its_description_and_weights(event, network, posterior, likelihood, tmp_path):
    vae, x = build(event, network, posterior, likelihood).eval(), examples(event, likelihood)
    again = build_model({"model": spec.describe(vae)}, {k: v.clone() for k, v in vae.state_dict().items()}, tmp_path)
    for seed in (0, 1):
        torch.manual_seed(seed)
        expected = vae.trace(x, 2)
        torch.manual_seed(seed)
        found = again.trace(x, 2)
        assert torch.equal(found.z, expected.z)
        assert torch.equal(found.log_px_z, expected.log_px_z)


@pytest.mark.parametrize(("event", "network", "posterior", "likelihood"), MODELS)
def test_an_example_does_not_depend_on_its_neighbours(event, network, posterior, likelihood):
    vae, x = build(event, network, posterior, likelihood).double().eval(), examples(event, likelihood).double()
    q, alone = vae.encoder(x), vae.encoder(x[2:3])
    torch.testing.assert_close(q.mean[2:3], alone.mean)
    z = q.mean.expand(4, -1, -1)
    log_p = vae.decoder(z).log_prob(x)
    assert log_p.shape == (4, len(x))
    torch.testing.assert_close(log_p[:, 2:3], vae.decoder(z[:, 2:3]).log_prob(x[2:3]))
    torch.testing.assert_close(log_p[0], log_p[3])


@pytest.mark.parametrize(("event", "network", "posterior", "likelihood"), MODELS)
def test_the_decoders_distribution_has_the_events_shape_and_its_samples_its_support(
    event, network, posterior, likelihood
):
    p = build(event, network, posterior, likelihood).decoder(torch.randn(4, 5, LATENT))
    assert (p.batch_shape, p.event_shape) == ((4, 5), event)
    assert p.mean.shape == (4, 5, *event)
    x = p.sample()
    assert x.shape == (4, 5, *event)
    if likelihood == "bernoulli":
        assert set(x.unique().tolist()) <= {0.0, 1.0}
    elif likelihood == "continuous-bernoulli":
        assert ((x >= 0) & (x <= 1)).all()
    elif likelihood in LEVELS:
        assert ((x >= 0) & (x <= 1)).all()
        torch.testing.assert_close(255 * x, (255 * x).round(), atol=1e-4, rtol=0)
    elif likelihood in COUNTS:
        assert ((x >= 0) & (x == x.round())).all()


@pytest.mark.parametrize(
    ("event", "network", "posterior", "likelihood"), [p for p in MODELS if p.values[2] == "diagonal-normal"]
)
def test_evidence_has_its_shapes_and_bounds_follow_each_other(event, network, posterior, likelihood):
    vae, x = build(event, network, posterior, likelihood).eval(), examples(event, likelihood)
    torch.manual_seed(0)
    evidence = log_evidence(vae, x, num_samples=200)
    for value in (evidence.log_px, evidence.elbo, evidence.rate, evidence.distortion, evidence.ess, evidence.khat):
        assert value.shape == (5,)
        assert torch.isfinite(value).all()
    assert (evidence.log_px > evidence.elbo - 1).all()
    assert (evidence.rate >= 0).all()


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_extreme_features_stay_finite_in_every_precision(likelihood, precision, objective):
    """Weights a million times too large: log-variances of +-1e5 and logits to match."""
    vae, x = build((7,), "mlp", "diagonal-normal", likelihood), examples((7,), likelihood)
    with torch.no_grad():
        vae.encoder.head.project.weight.mul_(1e6)
        vae.decoder.head.project.weight.mul_(10)
    with autocast(precision, torch.device("cpu")):
        terms = objective(vae, x)
    terms.loss.mean().backward()
    assert torch.isfinite(terms.loss).all()
    assert terms.loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_a_started_decoder_begins_at_the_datas_mean(likelihood, event):
    vae = build(event, "mlp", "diagonal-normal", likelihood)
    mean = torch.rand(event, generator=generator(3)) * 0.8 + 0.1
    vae.likelihood.start_at(mean)
    with torch.no_grad():
        vae.decoder.head.project.weight.zero_()
    torch.testing.assert_close(vae.decoder(torch.zeros(1, LATENT)).mean[0], mean, atol=1e-4, rtol=0)


def test_the_closed_form_and_the_sampled_kl_agree():
    vae, x = build((7,), "mlp", "diagonal-normal", "bernoulli"), examples((7,), "bernoulli")
    torch.manual_seed(0)
    closed, sampled = ELBO()(vae, x).kl, ELBO(closed_form=False, num_samples=20_000)(vae, x).kl
    torch.testing.assert_close(closed, sampled, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("head", "support", "fits"),
    [
        (heads.Bernoulli, Support.BINARY, True),
        (heads.Bernoulli, Support.EIGHT_BIT, True),
        (heads.Bernoulli, Support.REAL, False),
        (heads.ContinuousBernoulli, Support.UNIT_INTERVAL, True),
        (heads.ContinuousBernoulli, Support.BINARY, False),
        (heads.ContinuousBernoulli, Support.REAL, False),
        (heads.Normal, Support.REAL, True),
        (heads.Normal, Support.BINARY, False),
    ],
)
def test_a_likelihood_knows_the_data_it_means_something_for(head, support, fits):
    if fits:
        head((4,), (4,)).check(support)
    else:
        with pytest.raises(UsageError, match="These do: "):
            head((4,), (4,)).check(support)


def test_parts_that_do_not_fit_are_refused_with_both_shapes():
    with pytest.raises(UsageError, match=r"\(8,\).*\(16,\)"):
        heads.Conditional(nn.MLP((4,), (16,)), heads.Bernoulli((8,), (4,)))
    encoder = heads.Conditional(nn.MLP((4,), (8,)), heads.DiagonalNormal((8,), (2,)))
    decoder = heads.Conditional(nn.MLP((3,), (8,)), heads.Bernoulli((8,), (4,)))
    with pytest.raises(UsageError, match="agree on the shape of z"):
        VAE(encoder, decoder, StandardNormal(2))
    with pytest.raises(UsageError, match="likelihood head"):
        VAE(
            encoder,
            heads.Conditional(nn.MLP((2,), (8,)), heads.DiagonalNormal((8,), (4,))),
            StandardNormal(2),
        )


@pytest.mark.parametrize("bad", [0, -1, True])
def test_sizes_below_one_are_refused(bad):
    for make in (lambda: StandardNormal(bad), lambda: nn.MLP((4,), (bad,)), lambda: heads.Delta((4,), (bad,))):
        with pytest.raises(UsageError, match="at least 1"):
            make()


def test_a_convolution_refuses_what_is_no_picture():
    with pytest.raises(UsageError, match=r"channels, height, width"):
        nn.ConvDown((7,), (4,))
    with pytest.raises(UsageError, match="halved"):
        nn.ConvDown((1, 3, 3), (4, 4, 4, 4))


def test_the_prior_integrates_to_one():
    grid = torch.linspace(-9, 9, 2001)
    density = StandardNormal(1)().log_prob(grid[:, None]).exp()
    assert math.isclose(torch.trapezoid(density, grid).item(), 1.0, abs_tol=1e-5)
