"""Conditional models against closed forms, and as users run them: every distribution is told a label besides."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from command import assert_refused, call, succeed
from oracle import conditional_gaussian
from PIL import Image

import lowerbound as lb
from lowerbound import flows, heads, nn, priors, spec
from lowerbound.checkpoint import build_model
from lowerbound.data import ArraySource, Support, generator
from lowerbound.errors import UsageError
from lowerbound.evidence import (
    Annealing,
    Defensive,
    Refinement,
    Start,
    annealed_evidence,
    bidirectional,
    class_evidence,
    log_evidence,
    posterior_gap,
    quadrature_evidence,
    sweep,
)
from lowerbound.metrics import information
from lowerbound.model import VAE, ConditionalVAE
from lowerbound.model.conditional import _Given
from lowerbound.objectives import ELBO, IWAE, WAE, FreeBits, Reconstruction
from lowerbound.priors import NormalPerClass
from lowerbound.tasks import labels_to_sample
from lowerbound.training import Precision, Training, TrainState, autocast, train

SEEDS = range(5)
CLASSES = (12, 3, 7)
EVENT = (1, 6, 4)
PRIORS = {
    "standard": priors.StandardNormal,
    "per-class": lambda d: NormalPerClass(d, len(CLASSES)),
    "mixture": lambda d: priors.MixtureOfNormals(d, 4),
    "flow": lambda d: priors.FlowPrior(d, flows.real_nvp(d, 2, 8)),
}


def build(network: str = "mlp", prior: str = "per-class", posterior: type[heads.Head] = heads.DiagonalNormal):
    torch.manual_seed(0)
    count, latent = len(CLASSES), 3
    if network == "mlp":
        down, up = nn.MLP(nn.beside(EVENT, count), (16, 8)), nn.MLP(nn.beside((latent,), count), (8, 16))
    else:
        down = nn.ConvDown(nn.beside(EVENT, count, planes=True), (4, 6), 8)
        up = nn.ConvUp(nn.beside((latent,), count), EVENT[1:], (4, 6), 8)
    return ConditionalVAE(
        heads.Conditional(down, posterior(down.out_shape, (latent,))),
        heads.Conditional(up, heads.Bernoulli(up.out_shape, EVENT)),
        PRIORS[prior](latent),
        CLASSES,
    )


def examples(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    x = (torch.rand(count, *EVENT, generator=generator(0)) < 0.4).float()
    return x, torch.tensor(CLASSES)[torch.arange(count) % 3]


def scrambled(vae: VAE) -> VAE:
    """Away from every start at zero, so that nothing agrees by chance."""
    draws = generator(1)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=draws))
    return vae.eval()


# ---- closed forms


@pytest.mark.verifies(lb.model.ConditionalVAE, against="linear-Gaussian oracle")
@pytest.mark.parametrize("seed", SEEDS)
def test_every_draws_weight_is_the_evidence_times_the_posterior_over_q(seed):
    """log w(z) = log p(x|c) + log p(z|x, c) - log q(z|x, c), for each z by itself, to 1e-9."""
    oracle = conditional_gaussian(seed)
    trace = oracle.vae.given(oracle.label).trace(oracle.x, num_samples=11)
    expected = oracle.log_px() + oracle.posterior().log_prob(trace.z) - oracle.q().log_prob(trace.z)
    torch.testing.assert_close(trace.log_w, expected, atol=1e-9, rtol=0)
    assert trace.p.batch_shape == (7,)


@pytest.mark.parametrize("seed", SEEDS)
def test_at_the_true_posterior_the_bound_is_log_p_of_x_given_c(seed):
    oracle = conditional_gaussian(seed, exact_q=True)
    vae = oracle.vae.given(oracle.label)
    torch.testing.assert_close(ELBO(closed_form=False)(vae, oracle.x).elbo, oracle.log_px(), atol=1e-9, rtol=0)
    torch.testing.assert_close(IWAE(3)(vae, oracle.x).loss, -oracle.log_px(), atol=1e-9, rtol=0)
    closed = ELBO()(vae, oracle.x)
    draws = -ELBO(num_samples=4000)(vae, oracle.x).elbo
    torch.testing.assert_close(draws, -oracle.log_px(), atol=0.2, rtol=0)
    assert (closed.kl > 0).all()


def test_the_objective_moves_all_three_parts():
    oracle = conditional_gaussian(0, examples=40)
    ELBO()(oracle.vae.given(oracle.label), oracle.x).loss.mean().backward()
    for name, parameter in oracle.vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert (oracle.vae.prior.loc.grad.abs().sum(1) > 0).all(), "each class has examples here"


def test_a_class_without_examples_leaves_its_prior_alone():
    oracle = conditional_gaussian(0, examples=40)
    one = oracle.label == 7
    ELBO()(oracle.vae.given(oracle.label[one]), oracle.x[one]).loss.mean().backward()
    assert torch.equal(oracle.vae.prior.loc.grad.abs().sum(1) > 0, torch.tensor([False, True, False]))


def test_every_measure_of_the_evidence_takes_the_view_and_cuts_it_where_it_cuts_x():
    oracle = conditional_gaussian(1, examples=25)
    vae, exact = oracle.vae.given(oracle.label), oracle.log_px()
    torch.manual_seed(0)
    for found in (
        log_evidence(vae, oracle.x, 4000),
        log_evidence(vae, oracle.x, 4000, defensive=Defensive()),
        annealed_evidence(vae, oracle.x, Annealing(chains=8, temperatures=40), chunk=8 * 10),
    ):
        assert ((found.log_px - exact).abs() < 5 * found.stderr + 1e-6).all()
    grid = quadrature_evidence(vae, oracle.x[:25])
    torch.testing.assert_close(grid.log_px, exact, atol=1e-6, rtol=0)
    gap = posterior_gap(vae, oracle.x, 1000, refinement=Refinement(steps=20, draws=8), chunk=64)
    assert ((gap.log_px - exact).abs() < 5 * gap.total_stderr + 0.02).all()
    curve = sweep(vae, oracle.x, (1, 100))
    assert abs(curve.log_px[1] - exact.mean()) < 0.05


def test_the_sandwich_takes_one_label_or_one_for_each_simulated_example():
    """Annealed from the true posterior both bounds are log p(x|c), if x, q and the density have the same label."""
    oracle = conditional_gaussian(2, exact_q=True)
    annealing = Annealing(chains=2, temperatures=4, pilot_chains=2, start=Start.POSTERIOR)
    mixed = torch.tensor([3, 12, 7, 7, 3])
    for label in (7, mixed):
        found = bidirectional(oracle.vae.given(label), 5, annealing, chunk=4)
        simulated = replace(oracle, x=found.x, label=mixed if label is mixed else torch.full((5,), 7))
        torch.testing.assert_close(found.lower, simulated.log_px(), atol=1e-9, rtol=0)
        torch.testing.assert_close(found.upper, simulated.log_px(), atol=1e-9, rtol=0)


@pytest.mark.verifies(lb.evidence.class_evidence, against="linear-Gaussian oracle")
def test_bayes_theorem_gives_the_evidence_of_x_and_its_class():
    oracle = conditional_gaussian(3, exact_q=True, examples=50)
    for proportions in (None, (0.7, 0.2, 0.1)):
        log_pc = torch.tensor(proportions or (1 / 3,) * 3, dtype=torch.float64).log()
        joint = oracle.log_px_given() + log_pc
        found = class_evidence(oracle.vae, oracle.x, 5, proportions=proportions)
        torch.testing.assert_close(found.log_px, joint.logsumexp(1), atol=1e-9, rtol=0)
        torch.testing.assert_close(found.log_posterior, joint.log_softmax(1), atol=1e-9, rtol=0)
        assert torch.equal(found.predicted, torch.tensor([3, 7, 12])[joint.argmax(1)])
    assert (found.predicted == oracle.label).double().mean() > 0.8


def test_the_error_of_the_evidence_over_classes_is_as_stated():
    oracle, errors = conditional_gaussian(4, examples=60), []
    exact = (oracle.log_px_given() - math.log(3)).logsumexp(1)
    for seed in range(5):
        torch.manual_seed(seed)
        found = class_evidence(oracle.vae, oracle.x, 2000)
        errors.append((found.log_px - exact) / found.stderr)
    errors = torch.cat(errors).abs()
    assert 0.4 < errors.median() < 1.0
    assert (errors > 4).double().mean() < 0.02


@pytest.mark.parametrize("bad", [(0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.5, 0.5), (math.nan, 0.5, 0.5)])
def test_proportions_that_are_none_are_refused(bad):
    oracle = conditional_gaussian(0)
    with pytest.raises(UsageError, match="probabilities of the model's 3 classes"):
        class_evidence(oracle.vae, oracle.x, 2, proportions=bad)
    with pytest.raises(UsageError, match="needs a ConditionalVAE"):
        class_evidence(oracle.vae.given(3), oracle.x, 2)


@pytest.mark.verifies(lb.metrics.information, against="linear-Gaussian oracle")
def test_the_information_of_a_conditional_model_is_that_of_its_classes():
    """I_q(x; z|c) and KL(q(z|c) || p(z|c)): the mean over classes of what each class has by itself."""
    oracle = conditional_gaussian(5, examples=900)
    source = ArraySource(oracle.x.float(), oracle.label, support=Support.REAL)
    vae = oracle.vae.float()
    torch.manual_seed(0)
    whole, parts = information(vae, source, outer=900, draws=20), []
    for c in vae.classes:
        own = source.take(oracle.label == c)
        parts.append((len(own) / 900, information(vae.given(c), own, outer=900, draws=20)))
    for name in ("mutual", "marginal_kl", "rate", "ceiling"):
        expected = sum(share * getattr(part, name) for share, part in parts)
        assert getattr(whole, name) == pytest.approx(expected, abs=0.03), name
    assert whole.ceiling < math.log(900) - 1
    assert whole.marginal_kl > 0


# ---- the view


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
@torch.no_grad()
def test_examples_go_with_their_labels_and_with_no_others(network, prior):
    vae = scrambled(build(network, prior)).double()
    x, label = examples()
    x, order = x.double(), torch.tensor([4, 0, 5, 3, 1, 2])
    z = torch.randn(2, 6, 3, generator=generator(3), dtype=torch.float64)

    def measured(label, x, z):
        view = vae.given(label)
        q, p = view.encoder(x), view.prior()
        return q.log_prob(z), view.decoder(z).log_prob(x), p.log_prob(z), view.decoder(z[0]).log_prob(x)

    here = measured(label, x, z)
    for before, after in zip(here, measured(label[order], x[order], z[:, order]), strict=True):
        torch.testing.assert_close(before[..., order], after)
    for before, alone in zip(here, measured(label[4:5], x[4:5], z[:, 4:5]), strict=True):
        torch.testing.assert_close(before[..., 4:5], alone)
    for before, one in zip(here, measured(7, x, z), strict=True):
        mine = label == 7
        torch.testing.assert_close(before[..., mine], one[..., mine])
        if before is not here[2] or prior == "per-class":
            assert (before[..., ~mine] - one[..., ~mine]).abs().min() > 1e-6, "the label changes nothing"


@pytest.mark.parametrize("objective", [ELBO(), FreeBits(0.05), IWAE(3), WAE(10)], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_every_objective_reaches_every_weight_through_the_view(network, prior, objective):
    vae, (x, label) = build(network, prior), examples()
    if isinstance(objective, FreeBits) and prior not in ("standard", "per-class"):
        return
    objective.check(vae)
    view = vae.given(label)
    objective.check(view)
    terms = objective(view, x)
    assert terms.loss.shape == (6,)
    terms.loss.mean().backward()
    wae = isinstance(objective, WAE)  # learns no prior that cannot be drawn from differentiably
    missing = [n for n, p in vae.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not [n for n in missing if not (wae and n.startswith("prior"))]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_extreme_weights_stay_finite(precision):
    vae, (x, label) = build(), examples()
    with torch.no_grad():
        vae.encoder.head.project.weight.mul_(1e6)
        vae.prior.loc.fill_(30)
        vae.prior.raw_log_scale.fill_(-1e3)
    with autocast(precision, torch.device("cpu")):
        terms = ELBO()(vae.given(label), x)
    terms.loss.mean().backward()
    assert torch.isfinite(terms.loss).all()
    assert terms.loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_a_model_is_built_again_from_its_description_and_weights(network, prior, tmp_path):
    vae, (x, label) = scrambled(build(network, prior)), examples()
    tree = json.loads(json.dumps(spec.describe(vae)))
    again = build_model({"model": tree}, {k: v.clone() for k, v in vae.state_dict().items()}, tmp_path)
    assert (again.classes, spec.describe(again)) == (CLASSES, tree)
    found = []
    for model in (vae, again):
        torch.manual_seed(0)
        found.append(model.given(label).trace(x, 2))
    assert torch.equal(found[0].log_w, found[1].log_w)


def test_the_view_shares_weights_and_mode_and_a_plain_model_is_its_own():
    vae, (x, label) = build(), examples()
    view = vae.given(label)
    assert {id(p) for p in view.parameters()} == {id(p) for p in vae.parameters()}
    assert view.training
    assert not vae.eval().given(label).training
    assert (view.event_shape, view.latent_shape) == (EVENT, (3,))
    assert view.classes == ()
    assert view.given(torch.tensor([3])) is view
    assert vae.given(3).part(slice(0, 1)).encoder(x).batch_shape == (6,)
    assert view.part(slice(4, 6)).encoder(x[4:]).batch_shape == (2,)
    plain = lb.recipes.mlp(lb.open_data("digits"), width=8).vae
    assert plain.given(label) is plain
    assert plain.part(slice(0, 1)) is plain


def test_a_label_that_was_never_seen_is_refused_with_those_that_were():
    vae, (x, _) = build(), examples()
    for bad in (11, torch.tensor([3, 11, 7, 3, 3, 3]), torch.tensor(11)):
        with pytest.raises(UsageError, match=r"label 11,.*These labels work: 12, 3, 7\."):
            vae.given(bad)
    for call_it in (lambda: vae.given(None), lambda: vae.check_labels(None)):
        with pytest.raises(UsageError, match=r"there are no labels\. Use data with labels"):
            call_it()
    with pytest.raises(UsageError, match=r"use vae\.given\(label\)"):
        vae.trace(x)
    for part, value in ((vae.encoder, x), (vae.decoder, torch.zeros(2, 6, 3))):
        with pytest.raises(UsageError, match=r"vae\.given\(label\)"):
            part(value)
    with pytest.raises(UsageError, match=r"labels of shape \(2,\).*batch of shape \(6,\)"):
        vae.given(torch.tensor([3, 7])).encoder(x)


def test_where_looking_would_wait_an_unknown_label_comes_out_as_no_number():
    vae, (x, _) = build(), examples(2)
    terms = ELBO()(_Given(vae, torch.tensor([[False, False, False], [False, True, False]])), x)
    assert terms.loss.isnan().tolist() == [True, False]


def test_parts_that_do_not_fit_are_refused():
    vae = build()
    encoder, decoder, prior = vae.encoder, vae.decoder, vae.prior
    with pytest.raises(UsageError, match=r"encoder of this.*nn\.beside\(\(1, 6, 4\), 2\)"):
        ConditionalVAE(encoder, decoder, prior, (0, 1))
    other = heads.Conditional(nn.MLP((3,), (16,)), heads.Bernoulli((16,), EVENT))
    with pytest.raises(UsageError, match=r"decoder of this.*nn\.beside\(\(3,\), 3\)"):
        ConditionalVAE(encoder, other, prior, CLASSES)
    with pytest.raises(UsageError, match="prior tells 2 classes apart, and the model 3"):
        ConditionalVAE(encoder, decoder, NormalPerClass(3, 2), CLASSES)
    with pytest.raises(UsageError, match="pseudo-inputs do not have"):
        ConditionalVAE(encoder, decoder, priors.VampPrior(3, encoder.network.in_shape, 5), CLASSES)
    for bad in ((), (1, 1, 2), (1.0, 2, 3), (True, 2, 3), (1, 2, 1 << 50), tuple(range(10_001))):
        with pytest.raises(UsageError, match="distinct whole numbers"):
            ConditionalVAE(encoder, decoder, prior, bad)
    plain = heads.Conditional(nn.MLP(EVENT, (8,)), heads.DiagonalNormal((8,), (3,)))
    with pytest.raises(UsageError, match="prior tells 3 classes apart, and the model 0"):
        VAE(plain, other, prior)


def test_a_conditional_autoencoder_reconstructs():
    vae, (x, label) = build(posterior=heads.Delta, prior="standard"), examples()
    assert Reconstruction()(vae.given(label), x).loss.shape == (6,)
    with pytest.raises(UsageError, match="no density"):
        ELBO().check(vae)


# ---- the prior


@pytest.mark.verifies(lb.priors.NormalPerClass, against="quadrature")
def test_a_prior_for_each_class_begins_at_the_standard_normal_and_integrates_to_one():
    prior, index = NormalPerClass(1, 3).double(), torch.tensor([2, 0])
    z = torch.linspace(-40, 40, 20_001, dtype=torch.float64)[:, None, None]
    standard = priors.StandardNormal(1).double()
    torch.testing.assert_close(prior.given(index).log_prob(z), standard().log_prob(z).expand(-1, 2))
    with torch.no_grad():
        prior.loc.copy_(torch.tensor([[1.0], [2], [3]]))
        prior.raw_log_scale.copy_(torch.tensor([[0.5], [0], [-1]]))
    p = prior.given(index)
    torch.testing.assert_close(torch.trapezoid(p.log_prob(z).exp(), z[:, :, 0], dim=0), torch.ones(2).double())
    assert p.mean.flatten().tolist() == [3, 1]
    assert torch.equal(prior.given(torch.tensor(1)).mean, prior()[torch.tensor(1)].mean)
    with pytest.raises(UsageError, match="at least 1"):
        NormalPerClass(2, 0)


# ---- training


def test_a_training_goes_on_exactly_where_it_stopped():
    data = lb.open_data("digits")
    torch.manual_seed(0)
    run = lb.recipes.conditional(data, width=16, latent_dim=3, class_prior=True, epochs=2, batch_size=300)
    start = {k: v.clone() for k, v in run.vae.state_dict().items()}

    def carried_on(stop: int) -> dict[str, torch.Tensor]:
        run.vae.load_state_dict(start)
        state, halves = TrainState(run.vae, run.training, torch.device("cpu")), []
        for step in train(run.vae, run.data.train, run.objective, state=state, training=run.training):
            if step.step == stop:
                tensors = {k: v.clone() for k, v in state.tensors().items()}
                halves = [tensors, state.scalars()]
                break
        if halves:
            run.vae.load_state_dict(start)
            state = TrainState(run.vae, run.training, torch.device("cpu"))
            state.restore(*halves)
            list(train(run.vae, run.data.train, run.objective, state=state, training=run.training))
        return {k: v.clone() for k, v in run.vae.state_dict().items()}

    whole, resumed = carried_on(stop=0), carried_on(stop=4)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert any(not torch.equal(whole[k], start[k]) for k in whole)


def test_training_and_evaluation_refuse_labels_that_are_missing_or_unknown():
    vae, (x, label) = build(), examples()
    run = Training(epochs=1, batch_size=2)
    for labels, words in ((None, "there are no labels"), (label + 1, "never shown an example with the label 4, 8, 13")):
        source = ArraySource(x, labels, support=Support.BINARY)
        for use in (
            lambda s=source: next(train(vae, s, ELBO(), run)),
            lambda s=source: lb.evaluate(vae, s, num_samples=2),
            lambda s=source: information(vae, s),
        ):
            with pytest.raises(UsageError, match=words):
                use()


def test_the_recipe_refuses_data_without_labels_and_says_what_to_do(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, 6)).astype(np.float32))
    refused = call("train", "conditional", "--data", tmp_path / "x.npy", "--out", tmp_path / "run")
    assert_refused(refused, 2, "x.npy has no labels", "array y", "recipe mlp")
    assert not (tmp_path / "run").exists()


def test_the_recipe_refuses_validation_labels_that_training_does_not_have():
    data = lb.open_data("digits")
    unknown = data.valid.take(torch.arange(3))
    unknown._labels = torch.tensor([1, 2, 10])
    with pytest.raises(UsageError, match="label 10"):
        lb.recipes.conditional(lb.Data("mine", data.train, unknown, data.test), width=8)


@pytest.mark.parametrize("class_prior", [False, True])
def test_samples_of_a_class_are_of_that_class(class_prior):
    """Judged by the nearest class mean of real digits, which is right for 90 % of real ones."""
    data = lb.open_data("digits")
    torch.manual_seed(0)
    run = lb.recipes.conditional(data, width=128, latent_dim=8, epochs=25, batch_size=64, class_prior=class_prior)
    lb.fit(run.vae, run.data, run.objective, run.training, device=torch.device("cpu"))
    real = data.train.examples(torch.arange(len(data.train)))
    means = torch.stack([real.x[real.label == c].mean(0).flatten() for c in run.vae.classes])
    label = labels_to_sample(run.vae, 500)
    x = lb.sample(run.vae, 500)
    assert torch.equal(x, lb.sample(run.vae, 500, label=label))
    found = torch.cdist(x.flatten(1), means).argmin(1)
    assert (found == label).double().mean() > 0.8, "chance is 0.1"
    judged = run.data.test.examples(torch.arange(100))
    predicted = class_evidence(run.vae, judged.x, 50).predicted
    assert (predicted == judged.label).double().mean() > 0.8


# ---- what a model is asked to do


def test_samples_are_of_the_classes_asked_for():
    vae = scrambled(build())
    assert labels_to_sample(vae, 7).tolist() == [12, 12, 12, 3, 3, 7, 7]
    assert labels_to_sample(vae, 2).tolist() == [12, 3]
    assert labels_to_sample(vae, 3, 7).tolist() == [7, 7, 7]
    assert labels_to_sample(vae.given(7), 3) is None
    torch.testing.assert_close(lb.sample(vae, 600, label=7), lb.sample(vae.given(7), 600))
    mixed = torch.tensor(CLASSES)[torch.arange(600) % 3]
    some, all7 = lb.sample(vae, 600, label=mixed), lb.sample(vae, 600, label=7)
    torch.testing.assert_close(some[mixed == 7], all7[mixed == 7])
    assert (some[mixed != 7] - all7[mixed != 7]).abs().flatten(1).amax(1).min() > 0
    for bad, words in ((11, "label 11"), (torch.tensor([3, 7]), "one for all")):
        with pytest.raises(UsageError, match=words):
            lb.sample(vae, 6, label=bad)
    with pytest.raises(UsageError, match="at least 1"):
        lb.sample(vae, 0, label=7)
    with pytest.raises(UsageError, match=r"The label 7 .* not conditional"):
        lb.sample(vae.given(7), 6, label=7)


def test_a_line_is_of_one_class():
    vae, (x, _) = scrambled(build()), examples()
    ends = torch.tensor([7, 7])
    line = lb.interpolate(vae, x[0], x[1], 5, label=ends)
    torch.testing.assert_close(line[[0, -1]], lb.reconstruct(vae.given(ends), x[:2]))
    torch.testing.assert_close(line, lb.interpolate(vae.given(7), x[0], x[1], 5))
    mixed = torch.tensor([7, 3])
    with pytest.raises(UsageError, match="classes 7 and 3, and between two classes there is no class"):
        lb.interpolate(vae, x[0], x[1], 5, label=mixed)
    line = lb.interpolate(vae, x[0], x[1], 5, label=mixed, along=3)
    with torch.no_grad():
        loc = vae.given(mixed).encoder(x[:2]).mean
        torch.testing.assert_close(line[[0, -1]], vae.given(3).decoder(loc).mean)
    with pytest.raises(UsageError, match="label 11"):
        lb.interpolate(vae, x[0], x[1], 5, label=mixed, along=11)
    with pytest.raises(UsageError, match="not conditional"):
        lb.interpolate(vae.given(7), x[0], x[1], 5, along=7)


def test_encoding_uses_each_examples_own_label():
    vae, (x, label) = scrambled(build()), examples()
    encoded = lb.encode(vae, ArraySource(x, label, support=Support.BINARY), index=torch.tensor([4, 1]))
    with torch.no_grad():
        torch.testing.assert_close(encoded["loc"], vae.given(label).encoder(x).mean[[4, 1]])


# ---- the commands


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Real 8x8 digits of three classes that are called 3, 7 and 12, and a run on them."""
    folder = tmp_path_factory.mktemp("odd")
    digits = lb.open_data("digits").train
    kept = torch.isin(digits.labels, torch.tensor([3, 7, 1]))
    y = torch.where(digits.labels == 1, 12, digits.labels)[kept]
    np.savez(folder / "odd.npz", x=digits.values[kept].numpy(), y=y.numpy())
    options = ["--epochs", 1, "--width", 16, "--latent-dim", 3, "--batch-size", 50, "--device", "cpu"]
    run = folder / "run"
    succeed(call("train", "conditional", "--data", folder / "odd.npz", "--out", run, "--class-prior", *options))
    return run, folder


@pytest.fixture(scope="module")
def plain(odd: tuple[Path, Path]) -> Path:
    _, folder = odd
    options = ["--epochs", 1, "--width", 16, "--latent-dim", 3, "--batch-size", 50, "--device", "cpu"]
    succeed(call("train", "mlp", "--data", folder / "odd.npz", "--out", folder / "plain", *options))
    return folder / "plain"


def test_a_run_remembers_its_labels_and_samples_by_them(odd: tuple[Path, Path], tmp_path: Path):
    run, _ = odd
    assert lb.load(run).classes == (3, 7, 12)
    succeed(call("sample", run, "--n", 8, "--out", tmp_path / "all.npz"))
    with np.load(tmp_path / "all.npz") as drawn:
        assert drawn["label"].tolist() == [3, 3, 3, 7, 7, 7, 12, 12]
        assert np.array_equal(drawn["x"], lb.sample(lb.load(run), 8).numpy())
    succeed(call("sample", run, "--n", 4, "--label", 12, "--out", tmp_path / "one.npz"))
    with np.load(tmp_path / "one.npz") as drawn:
        assert drawn["label"].tolist() == [12] * 4
        assert np.array_equal(drawn["x"], lb.sample(lb.load(run), 4, label=12).numpy())


def test_a_grid_has_a_row_for_each_class(odd: tuple[Path, Path], tmp_path: Path):
    run, _ = odd
    for n, label, rows, columns in ((8, (), 3, 3), (2, (), 2, 1), (4, ("--label", 7), 2, 2)):
        succeed(call("sample", run, "--n", n, *label, "--out", tmp_path / "x.png"))
        with Image.open(tmp_path / "x.png") as image:
            pixels = np.asarray(image)
        margin = pixels.shape[1] - 10 * (columns * 10 + 2)
        assert pixels.shape[0] == 10 * (rows * 10 + 2)
        if label:
            assert margin == 0
            continue
        # Beside each row stands the name of its class, and between two names nothing.
        assert 10 < margin < 40
        written = [bool((row < 255).any()) for row in pixels[:, :margin]]
        assert sum(not above and here for above, here in pairwise([False, *written])) == rows
        assert all(written[round((row + 0.5) * pixels.shape[0] / rows)] for row in range(rows))
    for name in ("samples", "reconstructions", "interpolation", "latent", "curves"):
        assert (run / "figures" / f"{name}.png").is_file()


def test_a_label_that_the_run_does_not_know_is_refused(odd: tuple[Path, Path], plain: Path, tmp_path: Path):
    run, _ = odd
    out = ("--out", tmp_path / "x.png")
    assert_refused(call("sample", run, "--label", 11, *out), 2, "label 11", "These labels work: 3, 7, 12.")
    assert_refused(call("sample", plain, "--label", 7, *out), 2, "not conditional", "lowerbound train conditional")
    assert_refused(call("interpolate", plain, "--label", 7, *out), 2, "not conditional")
    assert_refused(call("sample", run, "--n", 0, *out), 2, "at least 1")
    assert not (tmp_path / "x.png").exists()


def test_the_other_verbs_work_on_a_conditional_run(odd: tuple[Path, Path], plain: Path, tmp_path: Path):
    run, _ = odd
    result = succeed(call("evaluate", run, "--json", "--samples", 10)).json
    assert any("p(x|c)" in note and "not comparable" in note for note in result["notes"])
    assert result["is_likelihood"] is True
    assert not any(
        "p(x|c)" in note for note in succeed(call("evaluate", plain, "--json", "--samples", 5)).json["notes"]
    )
    table = succeed(call("evaluate", run, "--samples", 10)).words
    for name in ("I(x; z|c)", "KL(q(z|c) || p(z|c))", "KL(q(z|x,c) || p(z|c))", "-log p(x|c)"):
        assert name in table
    assert "|c)" not in succeed(call("evaluate", plain, "--samples", 10)).words
    found = succeed(call("compare", plain, run, "--samples", 5, "--json")).json
    assert found["elbo_difference"] == found["log_px_difference"] == [0, None]
    assert found["rate_difference"][1] is not None
    assert any("one is of p(x|c)" in note for note in found["notes"])
    words = succeed(call("compare", plain, run, "--samples", 5)).words
    assert "one is of p(x|c)" in words
    assert "with the label c of each example given" in words
    succeed(call("reconstruct", run, "--n", 5, "--out", tmp_path / "r.npz"))
    succeed(call("encode", run, "--split", "train", "--out", tmp_path / "codes.npz"))
    with np.load(tmp_path / "codes.npz") as codes:
        label = codes["label"]
        assert len(codes["loc"]) == len(label) > 100
    first = label[0]
    same = int((label[1:] == first).argmax()) + 1
    other = int((label != first).argmax())
    line = ("interpolate", run, "--split", "train", "--steps", 4, "--out", tmp_path / "line.npz", "--to")
    succeed(call(*line, same))
    words = succeed(call(*line, other)).words
    assert f"of classes {first} and {label[other]}: all is decoded as {first}. --label" in words
    succeed(call(*line, other, "--label", first))
    assert_refused(call(*line, same, "--label", 11), 2, "These labels work: 3, 7, 12.")


def test_a_conditional_run_asks_for_labels_where_there_are_none(odd: tuple[Path, Path], tmp_path: Path):
    run, folder = odd
    with np.load(folder / "odd.npz") as odd_digits:
        np.savez(tmp_path / "bare.npz", x=odd_digits["x"])
        np.savez(tmp_path / "other.npz", x=odd_digits["x"], y=odd_digits["y"] + 1)
    for verb in ("evaluate", "encode", "reconstruct"):
        out = () if verb == "evaluate" else ("--out", tmp_path / "x.npz")
        assert_refused(call(verb, run, "--data", tmp_path / "bare.npz", *out), 2, "there are no labels", "array y")
        assert_refused(call(verb, run, "--data", tmp_path / "other.npz", *out), 2, "These labels work: 3, 7, 12.")
