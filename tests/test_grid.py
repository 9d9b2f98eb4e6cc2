"""The contract grid: every part goes with every other, or is refused in words.

Every combination of likelihood, posterior, prior and objective is evaluated once, with its gradients. What costs more
is asked of a quarter or a fifth of them, chosen so that every three parts that can meet do meet.
"""

import inspect
import itertools
import json
import math
from contextlib import contextmanager

import pytest
import torch
from parts import (
    BATCH,
    ELSEWHERE,
    EVENT,
    LATENT,
    LIKELIHOODS,
    OBJECTIVES,
    OF_A_BATCH,
    POSTERIORS,
    PRIORS,
    WITHOUT_DENSITY,
    build,
    examples,
    exported,
    first_of_each_class,
    scramble,
)

from lowerbound import heads, objectives, priors, spec
from lowerbound.checkpoint import build_model
from lowerbound.data import ArraySource, Support
from lowerbound.errors import UsageError
from lowerbound.evaluation import evaluate
from lowerbound.objectives import CIWAE, DIPVAE, ELBO, IWAE, MIWAE, PIWAE, WAE, BetaTC, FreeBits, Reconstruction
from lowerbound.tasks import encode, interpolate, reconstruct, sample
from lowerbound.training import Precision, autocast

ALL_LIKELIHOODS = first_of_each_class({name: make((2,), EVENT) for name, make in LIKELIHOODS.items()})
REFUSED_MODELS = {("iaf", "vamp"), ("delta", "vamp")}
PAIRS = [pair for pair in itertools.product(POSTERIORS, PRIORS) if pair not in REFUSED_MODELS]
MODELS = [
    pytest.param(*pair, likelihood, number, id=f"{pair[0]}-{pair[1]}-{likelihood}")
    for number, (pair, likelihood) in enumerate(itertools.product(PAIRS, ALL_LIKELIHOODS))
]
MULTI_SAMPLE = (IWAE, MIWAE, CIWAE, PIWAE)


def refused(posterior, prior, objective):
    """What the parts by these names cannot do together."""
    if posterior == "delta":
        return not isinstance(objective, WITHOUT_DENSITY)
    if isinstance(objective, FreeBits) and objective.groups != 1:
        return (posterior, prior) != ("diagonal", "standard")
    if isinstance(objective, BetaTC):
        return posterior != "diagonal"
    return isinstance(objective, DIPVAE) and posterior not in ("diagonal", "full")


def accepted(posterior, prior):
    return {name: o for name, o in OBJECTIVES.items() if not refused(posterior, prior, o)}


def some_of(posterior, prior, number, every):
    """One of `every` objectives, others for the next model; every objective meets every posterior with every prior."""
    chosen = {name: o for place, (name, o) in enumerate(OBJECTIVES.items()) if (place + number) % every == 0}
    return {name: o for name, o in chosen.items() if name in accepted(posterior, prior)}


def seeded(seed, function, *arguments):
    torch.manual_seed(seed)
    return function(*arguments)


def draws_of(objective):
    """How many draws of z an example the objective takes."""
    groups = objective.groups if isinstance(objective, MIWAE | PIWAE) else 1
    return groups * getattr(objective, "num_samples", 1)


def close(found, expected, tolerance=1e-9):
    # Much faster than torch.testing.assert_close, which counts where it is asked some twenty thousand times.
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


@contextmanager
def naming(objective):
    try:
        yield
    except Exception as error:
        error.add_note(f"with the objective {objective}")
        raise


def begun(posterior, prior, likelihood, **settings):
    """A model away from every start at zero, and examples; what the first batch initialises is initialised."""
    vae = scramble(build(posterior, prior, likelihood, **settings))
    x = examples(vae.likelihood)
    trace = vae.trace(x)
    if vae.has_density:
        assert trace.log_w.shape == (1, BATCH)
    return vae, x


# what there is


@pytest.mark.parametrize(
    ("kind", "made", "table"),
    [
        (heads.Likelihood, [make((2,), EVENT) for make in LIKELIHOODS.values()], "LIKELIHOODS"),
        (heads.Head, [make((2,), (LATENT,)) for make in POSTERIORS.values()], "POSTERIORS"),
        (priors.Prior, [make(LATENT, EVENT) for make in PRIORS.values()], "PRIORS"),
        (objectives.Objective, list(OBJECTIVES.values()), "OBJECTIVES"),
        (objectives.Estimator, [getattr(o, "estimator", None) for o in OBJECTIVES.values()], "OBJECTIVES"),
        (objectives.Aggregate, [getattr(o, "aggregate", None) for o in OBJECTIVES.values()], "OBJECTIVES"),
    ],
)
def test_every_exported_part_is_in_the_grid(kind, made, table):
    module = inspect.getmodule(kind).__name__.split(".")[1]
    there = exported({"heads": heads, "priors": priors, "objectives": objectives}[module], kind)
    if kind is heads.Head:
        there = {head for head in there if not issubclass(head, heads.Likelihood)}
    missing = sorted(cls.__name__ for cls in there - {type(part) for part in made})
    assert not missing, (
        f"lowerbound.{module} exports {missing}, which the grid does not know: add a small one of each to {table} in "
        "tests/parts.py, or name it in ELSEWHERE there with the file that tests it."
    )


def test_what_is_tested_elsewhere_is_exported_and_its_tests_are_there(request):
    names = {*heads.__all__, *priors.__all__, *objectives.__all__}
    for name, file in ELSEWHERE.items():
        assert name in names
        assert (request.config.rootpath / file).is_file()


# what is refused


def test_models_that_cannot_be_are_refused_and_no_others():
    for posterior, prior in itertools.product(POSTERIORS, PRIORS):
        if (posterior, prior) in REFUSED_MODELS:
            with pytest.raises(UsageError) as caught:
                build(posterior, prior)
            assert_names_a_way_out(str(caught.value), posterior, prior, None)
        else:
            build(posterior, prior)


@pytest.mark.parametrize(("posterior", "prior"), PAIRS)
def test_an_objective_takes_a_model_or_refuses_it_before_any_training(posterior, prior):
    vae = build(posterior, prior)
    for objective in OBJECTIVES.values():
        with naming(objective):
            if refused(posterior, prior, objective):
                with pytest.raises(UsageError) as caught:
                    objective.check(vae)
                assert_names_a_way_out(str(caught.value), posterior, prior, objective)
            else:
                objective.check(vae)


def assert_names_a_way_out(message, posterior, prior, objective):
    """One paragraph, and with one of the parts that it names in the place of the one that is there, all is well."""
    assert "\n" not in message
    assert len(message) > 60
    ways = [(n, prior, objective) for n, make in POSTERIORS.items() if type(make((2,), (3,))).__name__ in message]
    ways += [(posterior, n, objective) for n, make in PRIORS.items() if type(make(3, EVENT)).__name__ in message]
    if objective is not None:
        ways += [(posterior, prior, o) for o in OBJECTIVES.values() if type(o).__name__ in message]
    assert any((q, p) not in REFUSED_MODELS and not (o and refused(q, p, o)) for q, p, o in ways), message


# what every combination keeps


@pytest.mark.parametrize(("posterior", "prior", "likelihood", "number"), MODELS)
def test_terms_mean_what_they_say_and_reach_every_weight(posterior, prior, likelihood, number):
    vae, x = begun(posterior, prior, likelihood)
    vae, x = vae.double(), x.double()
    # The same seed and the same number of draws give an objective the same trace.
    with torch.no_grad():
        traces = {k: seeded(number, vae.trace, x, k) for k in {draws_of(o) for o in OBJECTIVES.values()}}
    for objective in accepted(posterior, prior).values():
        with naming(objective):
            vae.zero_grad()
            terms = seeded(number, objective, vae, x, 5)
            terms.loss.mean().backward()
            assert_terms(terms, objective, vae, traces[draws_of(objective)])
            assert_gradients(vae, objective)


@torch.no_grad()
def assert_terms(terms, objective, vae, trace):
    """Holds the terms against the trace that they were made of."""
    assert terms.loss.shape == terms.distortion.shape == (BATCH,)
    assert torch.isfinite(terms.loss).all()
    assert close(terms.distortion, -trace.log_px_z.mean(0))
    if isinstance(objective, Reconstruction) or not vae.has_density:
        assert terms.kl is terms.elbo is None
        return
    assert close(terms.elbo, -terms.distortion - terms.kl)
    closed = None if isinstance(objective, MULTI_SAMPLE) or objective == OBJECTIVES["elbo-sampled"] else trace.kl
    if closed is not None:
        assert (terms.kl >= 0).all()
    expected = (trace.log_qz - trace.log_pz).mean(0) if closed is None else closed
    assert close(terms.kl, expected, 1e-6)


def assert_gradients(vae, objective):
    taught = teaches_the_prior(objective, vae.prior)
    named = [(name, p.grad) for name, p in vae.named_parameters()]
    assert not [name for name, gradient in named if (gradient is None) == (taught or not name.startswith("prior."))]
    found = [gradient for _, gradient in named if gradient is not None]
    size = torch.stack(torch._foreach_norm(found, ord=math.inf))
    assert torch.isfinite(size).all()
    # A rate below the threshold of free bits teaches nobody.
    assert size.all() or isinstance(objective, FreeBits)


def teaches_the_prior(objective, prior):
    """A prior is taught through its density, or, where there is such a thing, through its own draws."""
    if isinstance(objective, WAE):
        return prior().has_rsample
    return not isinstance(objective, Reconstruction)


def step(vae, loss):
    """Moves the weights by 0.01 downhill."""
    vae.zero_grad()
    loss.backward()
    weights = [p for p in vae.parameters() if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(weights, 0.01)
    with torch.no_grad():
        torch._foreach_sub_(weights, [p.grad for p in weights])


@pytest.mark.parametrize(("posterior", "prior", "likelihood", "number"), MODELS)
def test_a_step_is_taken_and_judging_is_deterministic_and_an_examples_own(posterior, prior, likelihood, number):
    vae, x = begun(posterior, prior, likelihood)
    others = torch.cat([x[:2], examples(vae.likelihood, BATCH - 2, seed=1)])
    for objective in some_of(posterior, prior, number, every=4).values():
        with naming(objective):
            step(vae.train(), objective(vae, x).loss.mean())
            vae.eval()
            learning = seeded(number, objective, vae, x)
            with torch.no_grad():
                judged, again, beside = (seeded(number, objective, vae, value) for value in (x, x, others))
            for name in ("loss", "distortion", "kl", "elbo"):
                found = getattr(judged, name)
                if found is None:
                    continue
                assert torch.isfinite(found).all()
                assert torch.equal(getattr(again, name), found)
                assert close(found, getattr(learning, name), 1e-4)
                if name != "loss" or not isinstance(objective, OF_A_BATCH):
                    assert close(getattr(beside, name)[:2], found[:2], 1e-5)


# Every third: each posterior is there with each prior, and each likelihood with either.
@pytest.mark.parametrize(("posterior", "prior", "likelihood", "number"), MODELS[::3])
def test_a_model_is_built_again_from_its_description_and_weights(posterior, prior, likelihood, number, tmp_path):
    vae, x = begun(posterior, prior, likelihood)
    tree = json.loads(json.dumps(spec.describe(vae.eval())))
    again = build_model({"model": tree}, {k: v.clone() for k, v in vae.state_dict().items()}, tmp_path)
    assert spec.describe(again) == tree
    expected, found = (seeded(number, model.trace, x, 2) for model in (vae, again))
    for name in ("z", "log_px_z", "log_w") if vae.has_density else ("z", "log_px_z"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    if prior != "standard":
        assert torch.equal(again.prior().log_prob(found.z), vae.prior().log_prob(found.z))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize(("posterior", "prior", "likelihood", "number"), MODELS)
def test_extreme_weights_leave_everything_finite_in_every_precision(posterior, prior, likelihood, number, precision):
    """Log-variances and logits in the tens of thousands."""
    vae, x = begun(posterior, prior, likelihood)
    with torch.no_grad():
        for part, size in ((vae.encoder.head, 1e4), (vae.decoder.head, 1e4), (vae.prior, 100)):
            for parameter in part.parameters():
                parameter.mul_(size)
    for objective in some_of(posterior, prior, number, every=5).values():
        with naming(objective):
            vae.zero_grad()
            with autocast(precision, torch.device("cpu")):
                terms = objective(vae, x)
            terms.loss.mean().backward()
            assert terms.loss.dtype == terms.distortion.dtype == torch.float32
            for value in (terms.loss, terms.distortion, terms.kl):
                assert value is None or torch.isfinite(value).all()
            size = torch._foreach_norm([p.grad for p in vae.parameters() if p.grad is not None], ord=math.inf)
            assert torch.isfinite(torch.stack(size)).all()


@pytest.mark.parametrize(("posterior", "prior"), PAIRS)
def test_everything_that_is_asked_of_a_model_works(posterior, prior):
    vae, x = begun(posterior, prior, "bernoulli")
    source = ArraySource(x, support=Support.BINARY, scale=1.0)
    result = evaluate(vae, source, num_samples=50)
    assert math.isfinite(result.distortion)
    assert (result.log_px is None) == (not vae.has_density)
    if vae.has_density:
        assert result.log_px > result.elbo - 1
        assert result.elbo == pytest.approx(-result.distortion - result.rate)
    encoded = encode(vae, source)
    assert encoded["loc"].shape == encoded["scale"].shape == (BATCH, LATENT)
    assert (encoded["scale"] > 0).all() == vae.has_density
    assert reconstruct(vae, x).shape == sample(vae, BATCH).shape == (BATCH, *EVENT)
    assert interpolate(vae, x[0], x[1], 5).shape == (5, *EVENT)


# likelihoods on data of every shape, after every network


SHAPES = [((7,), "mlp"), ((1, 9, 6), "mlp"), ((1, 9, 6), "conv"), ((3, 8, 8), "mlp"), ((3, 8, 8), "conv")]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(("event", "network"), SHAPES)
def test_a_likelihood_follows_any_network_over_any_event(likelihood, event, network):
    vae, x = begun("diagonal", "standard", likelihood, event=event, network=network)
    ELBO()(vae, x).loss.mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in vae.parameters())
    p = vae.decoder(torch.randn(2, BATCH, LATENT))
    assert (p.batch_shape, p.event_shape) == ((2, BATCH), event)
    drawn = p.sample()
    assert p.mean.shape == drawn.shape == (2, BATCH, *event)
    ArraySource(drawn.flatten(0, 1), support=widest(vae.likelihood), name="what was drawn")
    vae = vae.double().eval()
    z = vae.encoder(x.double()).mean.expand(4, -1, -1)
    log_p = vae.decoder(z).log_prob(x.double())
    assert log_p.shape == (4, BATCH)
    torch.testing.assert_close(log_p[:, 2:3], vae.decoder(z[:, 2:3]).log_prob(x[2:3].double()))
    torch.testing.assert_close(log_p[0], log_p[3])


def widest(head):
    """The support of what the likelihood can draw; a source refuses values outside."""
    order = list(Support)
    return max({*head.exact, *head.relaxed} if not head.exact else head.exact, key=order.index)


# objectives by themselves


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
    assert bool(said) == (objective not in (OBJECTIVES["elbo"], OBJECTIVES["elbo-sampled"]))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_batch_of_one_is_possible(objective):
    """The last batch of an epoch may hold a single example."""
    vae = scramble(build())
    terms = objective(vae, examples(vae.likelihood, 1))
    terms.loss.mean().backward()
    assert torch.isfinite(terms.loss).all()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())
