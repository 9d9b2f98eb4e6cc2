"""Comparisons: the same examples for all, and differences whose errors are those of the pairs."""

import shutil

import pytest
import torch
from command import call, succeed, tiny
from oracle import linear_gaussian

from lowerbound import heads, nn
from lowerbound.cli.show import print_comparison
from lowerbound.data import ArraySource, Factors, Support, generator
from lowerbound.errors import UsageError
from lowerbound.evaluation import compare, evaluate
from lowerbound.model import VAE
from lowerbound.priors import StandardNormal


def test_a_paired_difference_is_exact_where_the_models_are_tight():
    """Two models whose q is the true posterior: each weight is p(x), so the paired difference has no noise but x's."""
    good, other = linear_gaussian(1, exact_q=True, examples=300), linear_gaussian(2, exact_q=True)
    source = ArraySource(good.x, support=Support.REAL)
    source.decode = lambda raw: raw
    result = compare({"good": good.vae, "other": other.vae}, source, num_samples=3)
    exact = other.evidence().log_prob(good.x) - good.evidence().log_prob(good.x)
    assert result.log_px_difference[1] == pytest.approx(exact.mean().item(), abs=1e-9)
    assert result.log_px_difference_stderr[1] == pytest.approx((exact.std() / len(exact) ** 0.5).item(), abs=1e-9)
    assert result.log_px_difference[0] == result.log_px_difference_stderr[0] == 0
    assert result.evaluations[0] == evaluate(good.vae, source, num_samples=3)


def test_pairs_tell_differences_that_the_models_own_errors_would_hide():
    oracle = linear_gaussian(3, examples=400)
    worse = linear_gaussian(3, examples=400)
    with torch.no_grad():
        worse.vae.decoder.head.project.bias.add_(0.2)
    source = ArraySource(oracle.x.float(), support=Support.REAL)
    models = {"oracle": oracle.vae.float(), "worse": worse.vae.float()}
    result = compare(models, source, num_samples=200)
    assert result.log_px_difference_stderr[1] < result.evaluations[0].log_px_stderr / 3
    assert result.log_px_difference[1] < -2 * result.log_px_difference_stderr[1]


def test_a_likelihood_is_not_subtracted_from_what_is_none():
    grey = ArraySource(torch.rand(20, 4, generator=generator(0)), support=Support.UNIT_INTERVAL)
    models = {}
    for head in (heads.ContinuousBernoulli, heads.Bernoulli):
        torch.manual_seed(0)
        down, up = nn.MLP((4,), (8,)), nn.MLP((2,), (8,))
        encoder = heads.Conditional(down, heads.DiagonalNormal((8,), (2,)))
        models[head.__name__] = VAE(encoder, heads.Conditional(up, head((8,), (4,))), StandardNormal(2)).eval()
    result = compare(models, grey, num_samples=5, gap=0)
    assert result.elbo_difference == result.log_px_difference == result.distortion_difference == (0, None)
    assert result.rate_difference == (0, 0), "the encoders are the same"
    (note,) = result.notes
    assert "Bernoulli beside ContinuousBernoulli: one is of a probability" in note
    alike = compare({"a": models["Bernoulli"], "b": models["Bernoulli"]}, grey, num_samples=5, gap=0)
    assert alike.elbo_difference == (0, 0)
    assert alike.notes == ()


def test_what_is_recovered_of_known_factors_is_compared_too(capsys):
    oracle, other = linear_gaussian(1, examples=600), linear_gaussian(2)
    values = (oracle.x @ torch.randn(oracle.x.shape[1], 2, generator=generator(0)).double()).float()
    factors = Factors(("a", "b"), values, (False, False))
    source = ArraySource(oracle.x.float(), support=Support.REAL, factors=factors)
    models = {"one": oracle.vae.float(), "other": other.vae.float()}
    result = compare(models, source, num_samples=3, gap=0)
    alone = [evaluate(vae, source, num_samples=3, gap=0).recovered for vae in models.values()]
    assert [one.recovered for one in result.evaluations] == alone
    assert alone[0] != alone[1]
    print_comparison("two models", result)
    printed = capsys.readouterr().out
    assert "FactorVAE" in printed
    assert f"{alone[1].mig:.3f}" in printed
    few = compare(models, source, num_samples=3, gap=0, limit=20)
    assert all(one.recovered is None for one in few.evaluations)
    assert any("how well the factors are recovered" in note for note in few.evaluations[0].notes)


def test_one_model_is_no_comparison():
    oracle = linear_gaussian(1)
    with pytest.raises(UsageError, match="at least 2"):
        compare({"alone": oracle.vae}, ArraySource(oracle.x.float(), support=Support.REAL))


def test_runs_are_compared_from_the_command_line(tmp_path):
    first, second, grey = tmp_path / "first", tmp_path / "second", tmp_path / "grey"
    succeed(call(*tiny(first)))
    succeed(call(*tiny(second, seed=1)))
    succeed(call(*tiny(grey, binarise="none")))
    found = succeed(call("compare", first, second, "--samples", 20, "--limit", 40, "--json")).json
    assert found["names"] == [str(first), str(second)]
    assert found["evaluations"][0]["n"] == 40
    assert found["log_px_difference"][1] == pytest.approx(
        found["evaluations"][1]["log_px"] - found["evaluations"][0]["log_px"], abs=1e-6
    )
    assert "A difference is taken example by" in succeed(call("compare", first, second, "--samples", 5)).words
    refused = call("compare", first, grey, "--samples", 20)
    assert refused.status == 2
    assert "do not see the same test examples" in refused.err
    shutil.rmtree(second)
    assert call("compare", first, second).status == 4
    assert call("compare", first).status == 2


def test_a_table_in_other_units_is_another_one(tmp_path):
    """x is the same to the last bit, and log p(x) is not: it is per metre, or per quarter of one."""
    words = ("--epochs", 1, "--width", 4, "--latent-dim", 1, "--device", "cpu")
    for name, unit in (("metres", 1), ("again", 1), ("quarters", 4)):
        lines = [f"{unit * i * i / 8},{i % 7}" for i in range(40)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b", *lines]))
        succeed(call("train", "tabular", "--data", tmp_path / f"{name}.csv", "--out", tmp_path / name, *words))
    succeed(call("compare", tmp_path / "metres", tmp_path / "again", "--samples", 2, "--gap", 0))
    refused = call("compare", tmp_path / "metres", tmp_path / "quarters", "--samples", 2, "--gap", 0)
    assert refused.status == 2
    assert "other units" in refused.err
