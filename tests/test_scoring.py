"""Scores of strangeness: their parts against exact answers, and what is strange above what is not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import conditional_gaussian, linear_gaussian
from sklearn.neighbors import NearestNeighbors
from torch.distributions import MultivariateNormal, kl_divergence

import lowerbound as lb
from lowerbound.data import ArraySource, Support, generator
from lowerbound.errors import UsageError
from lowerbound.evidence import Refinement
from lowerbound.experiment import prepare
from lowerbound.recipes import RECIPES
from lowerbound.scoring import Scores, reference_of, score, scored


def source_of(x, label=None):
    """Examples in float64."""
    source = ArraySource(x, label, support=Support.REAL)
    source.decode = lambda raw: raw
    return source


def divided(oracle, first):
    """The first of the oracle's examples as new ones, the rest as the reference."""
    return source_of(oracle.x[:first]), source_of(oracle.x[first:])


def exact_rate(oracle):
    return kl_divergence(oracle.q(), MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()))


def test_the_parts_are_within_their_errors_of_the_exact_ones():
    oracle = linear_gaussian(3, examples=80)
    new, known = divided(oracle, 40)
    found = score(oracle.vae, new, known, num_samples=2000)
    away = (found.log_px - oracle.log_px()[:40]) / found.log_px_stderr
    assert away.abs().max() < 5
    assert 0.5 < away.std() < 2
    # The mean over examples of what 2,000 draws say: an error of some hundredths.
    assert (found.elbo - oracle.exact_elbo()[:40]).mean().abs() < 0.02
    torch.testing.assert_close(found.rate, exact_rate(oracle)[:40])
    torch.testing.assert_close(found.elbo, -found.distortion - found.rate)
    assert found.regret is None


def test_the_regret_is_what_the_best_q_of_the_family_gains():
    oracle = linear_gaussian(5, examples=30)
    new, known = divided(oracle, 10)
    found = score(oracle.vae, new, known, num_samples=4000, regret=Refinement(steps=200, draws=16))
    p = oracle.posterior()
    # Of all diagonal normals the one with the precisions of p(z|x) has the least KL to it.
    best = MultivariateNormal(p.mean, torch.diag_embed(1 / p.precision_matrix.diagonal(dim1=-2, dim2=-1)))
    exact = (oracle.kl_to_posterior() - kl_divergence(best, p))[:10]
    assert exact.min() > 0.02
    torch.testing.assert_close(found.regret, exact, atol=0.03, rtol=0.1)


def test_typicality_is_in_deviations_of_the_reference():
    oracle = linear_gaussian(7, exact_q=True, examples=60)
    new, known = divided(oracle, 20)
    found = score(oracle.vae, new, known, num_samples=3)
    exact = -oracle.log_px()
    torch.testing.assert_close(found.log_px, -exact[:20])
    torch.testing.assert_close(found.typicality, (exact[:20] - exact[20:].mean()).abs() / exact[20:].std())


def test_a_score_hangs_on_the_example_and_not_on_its_company():
    oracle = linear_gaussian(7, exact_q=True, examples=700)
    new, known = divided(oracle, 620)
    reference = reference_of(oracle.vae, known, num_samples=5)
    whole = score(oracle.vae, new, reference)
    order = torch.randperm(620, generator=generator(1))[:33]
    some = score(oracle.vae, new.take(order), reference)
    for name in ("log_px", "rate", "typicality"):
        torch.testing.assert_close(getattr(some, name), getattr(whole, name)[order])
    blocks = list(scored(oracle.vae, new, reference))
    assert [len(block) for block in blocks] == [500, 120]
    joined = Scores.joined(blocks).columns()
    assert joined.keys() == whole.columns().keys()
    assert all(torch.equal(joined[name], value) for name, value in whole.columns().items())


def mean_distance(points, among, own=False):
    """The mean distance of points to their ten nearest among others, and which these are, by another library."""
    asked = 11 if own else 10
    distances, places = NearestNeighbors(n_neighbors=asked, algorithm="brute").fit(among).kneighbors(points)
    return distances[:, asked - 10 :].mean(1), places[:, asked - 10 :]


def in_deviations(values, among):
    return (values - among.mean(0)) / among.std(0, ddof=1)


def test_the_anomaly_is_how_rare_and_how_far_for_where_it_is():
    oracle = linear_gaussian(7, dims=6, examples=90)
    new, known = divided(oracle, 30)
    reference = reference_of(oracle.vae, known, num_samples=5)
    found = score(oracle.vae, new, reference)
    # The oracle's features are x itself.
    direction = (oracle.x / oracle.x.norm(dim=1, keepdim=True)).numpy()
    far, near = mean_distance(direction[:30], direction[30:])
    known_far, known_near = mean_distance(direction[30:], direction[30:], own=True)
    raw = (reference.statistics * reference.spread + reference.centre).numpy()
    np.testing.assert_allclose(raw[:, 2], known_far)
    np.testing.assert_allclose(raw[:, 1], exact_rate(oracle)[30:].detach())
    statistics = in_deviations(np.stack([found.distortion, found.rate, far], 1), raw)
    known_statistics = in_deviations(raw, raw)
    known_rare, _ = mean_distance(known_statistics, known_statistics, own=True)
    rare, _ = mean_distance(statistics, known_statistics)
    local = np.log(far / known_far[near].mean(1))
    known_local = np.log(known_far / known_far[known_near].mean(1))
    exact = in_deviations(rare, known_rare) + in_deviations(local, known_local)
    np.testing.assert_allclose(found.anomaly, exact, rtol=1e-6)
    known_exact = in_deviations(known_rare, known_rare) + in_deviations(known_local, known_local)
    np.testing.assert_allclose(reference.anomaly, known_exact, rtol=1e-6, atol=1e-9)


def test_many_features_are_sketched_and_their_distances_kept():
    oracle = linear_gaussian(3, dims=5000, examples=60)
    reference = reference_of(oracle.vae, source_of(oracle.x), num_samples=2)
    assert reference.directions.shape == (60, 1024)
    exact = torch.pdist(oracle.x / oracle.x.norm(dim=1, keepdim=True)).square()
    ratio = torch.pdist(reference.directions).square() / exact
    # The variance of a sketch's squared length is at most 2 / 1024 of its square; 60 examples make 1,770 pairs.
    assert abs(ratio.mean() - 1) < 0.02
    assert 0.02 < ratio.std() < 1.2 * math.sqrt(2 / 1024)
    again = reference_of(oracle.vae, source_of(oracle.x), num_samples=2)
    assert torch.equal(reference.directions, again.directions)


def test_the_noise_is_seeded_and_nothing_else_is_touched():
    oracle = linear_gaussian(3, examples=60)
    new, known = divided(oracle, 20)
    oracle.vae.train()
    state = torch.get_rng_state()
    first, again, other = (score(oracle.vae, new, known, num_samples=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.anomaly, again.anomaly)
    assert not torch.equal(first.anomaly, other.anomaly)
    assert torch.equal(torch.get_rng_state(), state)
    assert oracle.vae.training


@pytest.fixture(scope="module")
def wide():
    """A model of 40 dimensions with two causes, and what is measured of 800 examples."""
    oracle = linear_gaussian(11, dims=40, exact_q=True, examples=1600)
    return oracle, reference_of(oracle.vae, source_of(oracle.x[:800]), num_samples=20)


def test_new_examples_of_the_same_kind_are_no_stranger_than_the_reference(wide):
    oracle, reference = wide
    found = score(oracle.vae, source_of(oracle.x[800:]), reference)
    threshold = reference.anomaly.quantile(0.9)
    # 800 examples: a deviation of 0.011, and as much again for the threshold's own.
    assert 0.06 < (found.anomaly > threshold).double().mean() < 0.14


def test_what_is_strange_is_told_whatever_its_likelihood(wide):
    oracle, reference = wide
    across = torch.randn(40, generator=generator(2), dtype=torch.float64)
    basis = torch.linalg.qr(oracle.weight).Q
    across = across - basis @ (basis.T @ across)
    strange = {
        "off the plane of all data": oracle.x[0] + 4 * across / across.norm(),
        "far out on the plane": oracle.x[0] + oracle.weight @ torch.tensor([5.0, 5.0]).double(),
        "the mode, without any noise": oracle.bias,
    }
    found = score(oracle.vae, source_of(torch.stack(list(strange.values()))), reference)
    assert (found.anomaly > reference.anomaly.quantile(0.99)).all(), dict(zip(strange, found.anomaly, strict=True))
    # The last is the most probable x of all, and likelihood alone would never find it.
    assert found.log_px[2] > oracle.log_px().max()


def test_a_conditional_model_is_told_the_labels():
    oracle = conditional_gaussian(2, exact_q=True, examples=40)
    new, known = source_of(oracle.x[:10], oracle.label[:10]), source_of(oracle.x[10:], oracle.label[10:])
    found = score(oracle.vae, new, known, num_samples=3)
    torch.testing.assert_close(found.log_px, oracle.log_px()[:10])
    assert torch.equal(found.label, oracle.label[:10])
    # What an example is held against, its features, is told the label as well.
    reference = reference_of(oracle.vae, known, num_samples=3)
    other = source_of(oracle.x[10:], oracle.label[10:].roll(1))
    assert not torch.allclose(reference_of(oracle.vae, other, num_samples=3).directions, reference.directions)
    with pytest.raises(UsageError, match="conditional"):
        score(oracle.vae, source_of(oracle.x[:10]), known)


def test_a_limit_picks_rows_and_names_them():
    oracle = linear_gaussian(7, exact_q=True, examples=60)
    new, known = divided(oracle, 30)
    found = score(oracle.vae, new, known, num_samples=2, limit=7)
    assert len(set(found.row.tolist())) == 7
    torch.testing.assert_close(found.log_px, oracle.log_px()[found.row])


@pytest.mark.parametrize("name", ["vq", "fsq", "ladder", "iaf", "full-covariance", "vamp", "flow-prior", "sigma"])
def test_every_kind_of_model_has_scores(name):
    data = lb.open_data("digits")
    few = replace(data, train=data.train.slice(0, 40), valid=None, test=data.test.slice(0, 23))
    run = prepare(RECIPES[name], few, {})
    found = score(run.vae, run.data.test, run.data.train, num_samples=4)
    for column, value in found.columns().items():
        assert value.shape == (23,)
        assert torch.isfinite(value.double()).all(), column


def test_examples_that_are_all_the_same_have_finite_scores():
    oracle = linear_gaussian(7, exact_q=True, examples=30)
    known = source_of(oracle.x[:1].expand(12, -1).clone())
    found = score(oracle.vae, source_of(oracle.x), known, num_samples=2)
    assert torch.isfinite(found.anomaly).all()
    assert torch.isfinite(found.typicality).all()
    assert found.anomaly[0] < found.anomaly[1:].min()


def test_what_cannot_be_scored_is_refused():
    oracle = linear_gaussian(7, examples=30)
    new, known = divided(oracle, 10)
    with pytest.raises(UsageError, match="at least 3 examples; got 2"):
        score(oracle.vae, new, known.slice(0, 2))
    with pytest.raises(UsageError, match=r"x of shape \(5,\)"):
        score(oracle.vae, source_of(torch.zeros(4, 6)), known)
    with pytest.raises(UsageError, match="a limit of 0"):
        score(oracle.vae, new, known, limit=0)
    with pytest.raises(UsageError, match="num_samples=0"):
        score(oracle.vae, new, known, num_samples=0)
    run = prepare(RECIPES["autoencoder"], lb.open_data("digits"), {})
    with pytest.raises(UsageError, match="Delta posterior has no density"):
        score(run.vae, run.data.test, run.data.train)


def test_one_draw_has_no_error_and_says_so():
    oracle = linear_gaussian(7, examples=30)
    found = score(oracle.vae, *divided(oracle, 10), num_samples=1)
    assert all(math.isnan(value) for value in found.log_px_stderr.tolist())
    assert torch.isfinite(found.anomaly).all()
