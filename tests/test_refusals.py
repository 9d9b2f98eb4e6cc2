"""What cannot work is refused when it is put together, in words that name what would work."""

import pytest
import torch
from parts import LIKELIHOODS, build, examples, likelihood_named

import lowerbound as lb
from lowerbound import heads, nn
from lowerbound.checkpoint import RunFolder
from lowerbound.data import Support
from lowerbound.errors import UsageError
from lowerbound.evidence import quadrature_evidence
from lowerbound.experiment import Experiment, prepare
from lowerbound.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, FreeBits
from lowerbound.priors import StandardNormal
from lowerbound.recipes import LikelihoodName, mlp

CPU = torch.device("cpu")
VALUES = {
    Support.BINARY: lambda u: (u < 0.4).float(),
    Support.EIGHT_BIT: lambda u: (255 * u).to(torch.uint8),
    Support.UNIT_INTERVAL: lambda u: u,
    Support.COUNT: lambda u: (50 * u**3).round().int(),
    Support.REAL: lambda u: 10 * u - 5,
    Support.TOKENS: lambda u: (9 * u).to(torch.uint8),
    Support.TABLE: lambda u: u.masked_fill(u < 0.2, torch.nan),
}
# What a recipe may be asked to put on which data; the rest is refused.
FITS = {
    LikelihoodName.AUTO: set(Support) - {Support.TABLE, Support.TOKENS},
    LikelihoodName.BERNOULLI: {Support.BINARY, Support.EIGHT_BIT, Support.UNIT_INTERVAL},
    LikelihoodName.CONTINUOUS_BERNOULLI: {Support.EIGHT_BIT, Support.UNIT_INTERVAL},
    LikelihoodName.NORMAL: {Support.EIGHT_BIT, Support.UNIT_INTERVAL, Support.REAL},
    LikelihoodName.DISCRETISED_LOGISTIC: {Support.EIGHT_BIT},
    LikelihoodName.LOGISTIC_MIXTURE: {Support.EIGHT_BIT},
    LikelihoodName.POISSON: {Support.COUNT},
    LikelihoodName.NEGATIVE_BINOMIAL: {Support.COUNT},
}


def made(support: Support) -> lb.Data:
    values = VALUES[support](torch.rand(60, 4, generator=torch.Generator().manual_seed(0)))
    scale = 1 / 255 if support is Support.EIGHT_BIT else 1.0
    source = lb.ArraySource(values, support=support, scale=scale)
    return lb.Data("made", source.slice(0, 40), source.slice(40, 50), source.slice(50, 60))


def begun(data: lb.Data, tmp_path, **settings) -> Experiment:
    small = {"width": 8, "latent_dim": 2, "batch_size": 20, "epochs": 1, "binarise": lb.recipes.BinariseName.NONE}
    return Experiment(prepare(mlp, data, small | settings), RunFolder(tmp_path / "run"), device=CPU)


@pytest.mark.parametrize("likelihood", LikelihoodName)
@pytest.mark.parametrize("support", Support)
def test_a_run_is_made_of_a_likelihood_that_fits_the_data_or_not_at_all(support, likelihood, tmp_path):
    data = made(support)
    if support in FITS[likelihood]:
        experiment = begun(data, tmp_path, likelihood=likelihood)
        experiment.begin()
        assert [torch.isfinite(update.step.terms.loss).all() for update in experiment.updates()] == [True] * 2
        assert lb.evaluate(lb.load(tmp_path / "run"), data.test, num_samples=5).n == 10
        return
    with pytest.raises(UsageError, match=r"means nothing for values with support .* These do: \w+") as caught:
        begun(data, tmp_path, likelihood=likelihood)
    named = str(caught.value).split("These do: ")[1].split(".")[0].split(", ")
    for name in named:
        likelihood_named(name).check(support)


def test_every_likelihood_name_has_its_row_here():
    assert set(FITS) == set(LikelihoodName)


@pytest.mark.parametrize("support", Support)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_training_and_judging_refuse_the_same_data(support, likelihood):
    vae, source = build(likelihood=likelihood, event=(4,)), made(support).train
    if support in {*vae.likelihood.exact, *vae.likelihood.relaxed}:
        next(lb.train(vae, source, ELBO(), lb.Training(epochs=1, batch_size=40), device=CPU))
        return
    for use in (
        lambda: next(lb.train(vae, source, ELBO(), lb.Training(epochs=1, batch_size=40), device=CPU)),
        lambda: lb.evaluate(vae, source, num_samples=1),
    ):
        with pytest.raises(UsageError, match=f"support {support.value}. These do: "):
            use()


def test_an_objective_that_means_nothing_for_the_model_begins_no_run(tmp_path):
    data = made(Support.BINARY)
    for posterior, prior, objective, said in (
        ("delta", "standard", ELBO(), "Reconstruction or WAE"),
        ("delta", "standard", IWAE(), "Reconstruction or WAE"),
        ("iaf", "standard", FreeBits(0.1), r"FreeBits\(groups=1\)"),
        ("diagonal", "real-nvp", FreeBits(0.1), r"FreeBits\(groups=1\)"),
        ("iaf", "standard", lb.objectives.BetaTC(40), "DiagonalNormal posterior, or an ELBO"),
        ("real-nvp", "mixture", lb.objectives.DIPVAE(), "DiagonalNormal posterior, or InfoVAE"),
    ):
        vae = build(posterior, prior, event=(4,))
        run = lb.Run(data, vae, objective, lb.Training(batch_size=20))
        with pytest.raises(UsageError, match=said):
            Experiment(run, RunFolder(tmp_path / "run"), device=CPU)
        with pytest.raises(UsageError, match=said):
            lb.fit(vae, data, objective, run.training, device=CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", [ELBO, IWAE, MIWAE, PIWAE, CIWAE, FreeBits])
@pytest.mark.parametrize("count", [0, -1])
def test_no_draws_are_refused(objective, count):
    with pytest.raises(UsageError, match=r"(at least 1|>= 1).*got"):
        objective(num_samples=count)


def test_no_draws_are_refused_in_judging():
    vae, source = build(event=(4,)), made(Support.BINARY).test
    with pytest.raises(UsageError, match="at least 1 draw"):
        lb.evaluate(vae, source, num_samples=0)


def test_an_empty_source_is_neither_learned_from_nor_judged_on():
    vae, none = build(event=(4,)), made(Support.BINARY).train.slice(0, 0)
    with pytest.raises(UsageError, match="no training examples"):
        next(lb.train(vae, none, ELBO(), device=CPU))
    with pytest.raises(UsageError, match="at least 2 examples"):
        lb.evaluate(vae, none)


def test_a_latent_space_that_is_too_large_for_a_grid_is_refused_with_what_is_not():
    vae = build(latent=3).eval()
    with pytest.raises(UsageError, match=r"has 3.*log_evidence.*annealed_evidence"):
        quadrature_evidence(vae, examples(vae.likelihood))
    vae = build(latent=2).eval()
    assert quadrature_evidence(vae, examples(vae.likelihood), points=51).log_px.isfinite().all()


def test_parts_that_do_not_fit_are_refused_with_both_shapes():
    with pytest.raises(UsageError, match=r"\(8,\).*\(16,\)"):
        heads.Conditional(nn.MLP((4,), (16,)), heads.Bernoulli((8,), (4,)))
    encoder = heads.Conditional(nn.MLP((4,), (8,)), heads.DiagonalNormal((8,), (2,)))
    decoder = heads.Conditional(nn.MLP((3,), (8,)), heads.Bernoulli((8,), (4,)))
    with pytest.raises(UsageError, match="agree on the shape of z"):
        lb.VAE(encoder, decoder, StandardNormal(2))
    with pytest.raises(UsageError, match="likelihood head"):
        lb.VAE(
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
