"""Evaluations: each number within its own stated error of the exact one, and every caveat in words."""

import inspect
import itertools
import math

import pytest
import torch
from command import call, run, succeed, tiny
from oracle import linear_gaussian
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, kl_divergence

from lowerbound import heads
from lowerbound.cli import judge
from lowerbound.data import ArraySource, Support
from lowerbound.errors import UsageError
from lowerbound.evaluation import SPLIT_EXAMPLES, compare, evaluate
from lowerbound.evaluation.measuring import Plan
from lowerbound.evidence import quadrature_evidence
from lowerbound.flows import Chain, Permutation, inverse_autoregressive
from lowerbound.model import VAE
from lowerbound.nn import MLP
from lowerbound.objectives import ELBO, IWAE
from lowerbound.priors import MixtureOfNormals, StandardNormal
from lowerbound.training import Precision, autocast

# Section 6 of the design, word for word.
CONTRACT = set(
    """
    elbo elbo_stderr rate distortion log_px log_px_stderr num_samples n bits_per_dim ess_median khat_bad active_units
    latent_dim posterior_gap likelihood is_likelihood notes units
    """.split()  # noqa: SIM905
)
ADDED = set(
    """
    rate_stderr distortion_stderr objective elbo_mc_stderr log_px_mc_stderr sweep posterior_gap_stderr
    approximation_gap approximation_gap_stderr approximation_gap_mc_stderr
    amortisation_gap amortisation_gap_stderr amortisation_gap_mc_stderr
    split_gap split_gap_stderr split_gap_mc_stderr split_khat_bad split_n
    rate_per_dimension mutual_information mutual_information_stderr marginal_kl marginal_kl_stderr
    information_n information_outer information_saturated
    rate_per_layer conditional num_codes codes_used perplexity precision
    """.split()  # noqa: SIM905
)
SWEEP = ["num_samples", "log_px", "log_px_stderr", "log_px_mc_stderr"]


def source_of(oracle):
    """The oracle's examples, in float64."""
    source = ArraySource(oracle.x, support=Support.REAL)
    source.decode = lambda raw: raw
    return source


def shifted(seed: int, examples: int = 60):
    """An encoder off its true posterior by half a deviation, and 1.3 times too wide: the KL is the same for each x."""
    oracle = linear_gaussian(seed, exact_q=True, examples=examples)
    latent = oracle.weight.shape[1]
    with torch.no_grad():
        bias = oracle.vae.encoder.head.project.bias
        bias[:latent] += 0.5 * oracle.posterior().stddev[0]
        bias[latent:] += math.log(1.3)
    exact = latent * (0.5 * (1.3**2 + 0.5**2 - 1) - math.log(1.3))
    torch.testing.assert_close(oracle.kl_to_posterior(), torch.full_like(oracle.x[:, 0], exact))
    return oracle, exact


def with_posterior(oracle, head):
    """The oracle's model with another posterior head."""
    head = head.double()
    return VAE(heads.Conditional(oracle.vae.encoder.network, head), oracle.vae.decoder, oracle.vae.prior).eval()


def test_every_number_is_within_its_own_error_of_the_exact_one():
    oracle = linear_gaussian(3, examples=300)
    found = evaluate(oracle.vae, source_of(oracle), num_samples=1000)
    log_px, elbo, n = oracle.log_px(), oracle.exact_elbo(), 300
    assert abs(found.log_px - log_px.mean()) < 4 * found.log_px_mc_stderr
    assert abs(found.elbo - elbo.mean()) < 4 * found.elbo_mc_stderr
    assert found.log_px_mc_stderr < 0.1 * found.log_px_stderr
    assert found.log_px_stderr == pytest.approx((log_px.std() / math.sqrt(n)).item(), rel=0.02)
    assert found.elbo_stderr == pytest.approx((elbo.std() / math.sqrt(n)).item(), rel=0.05)
    rate = kl_divergence(oracle.q(), MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()))
    assert found.rate == pytest.approx(rate.mean().item())
    assert found.rate_stderr == pytest.approx((rate.std() / math.sqrt(n)).item())
    assert abs(found.posterior_gap - oracle.kl_to_posterior().mean()) < 4 * math.hypot(
        found.log_px_mc_stderr, found.elbo_mc_stderr
    )
    assert found.notes == ()


def test_the_errors_over_the_draws_are_what_repeating_with_other_seeds_shows():
    oracle = linear_gaussian(8, examples=20)
    found = [evaluate(oracle.vae, source_of(oracle), num_samples=60, gap=0, seed=seed) for seed in range(80)]
    for name in ("log_px", "elbo"):
        shown = torch.tensor([getattr(f, name) for f in found]).std().item()
        stated = torch.tensor([getattr(f, f"{name}_mc_stderr") for f in found]).square().mean().sqrt().item()
        assert stated == pytest.approx(shown, rel=0.3), name
    for place in range(3):
        shown = torch.tensor([f.sweep[place].log_px for f in found]).std().item()
        stated = torch.tensor([f.sweep[place].log_px_mc_stderr for f in found]).square().mean().sqrt().item()
        assert stated == pytest.approx(shown, rel=0.3), place


@pytest.mark.parametrize(
    ("num_samples", "ks"), [(1, (1,)), (10, (1, 10)), (50, (1, 10, 50)), (6000, (1, 10, 100, 1000, 5000, 6000))]
)
def test_the_sweep_ends_at_log_px_itself(num_samples, ks):
    oracle = linear_gaussian(2, examples=4)
    found = evaluate(oracle.vae, source_of(oracle), num_samples=num_samples, gap=0)
    assert tuple(point.num_samples for point in found.sweep) == ks == Plan(num_samples).ks
    last = found.sweep[-1]
    assert last.log_px == pytest.approx(found.log_px, rel=1e-14)
    assert last.log_px_stderr == pytest.approx(found.log_px_stderr)
    assert last.log_px_mc_stderr == (None if num_samples == 1 else pytest.approx(found.log_px_mc_stderr))
    assert (found.log_px_mc_stderr is None) == (num_samples == 1)


def test_the_sweep_begins_at_the_elbo_and_rises():
    oracle = linear_gaussian(3, examples=100)
    found = evaluate(oracle.vae, source_of(oracle), num_samples=1000, gap=0)
    first = found.sweep[0]
    assert abs(first.log_px - oracle.exact_elbo().mean()) < 4 * first.log_px_mc_stderr
    means = [point.log_px for point in found.sweep]
    assert means == sorted(means)
    assert means[1] - means[0] > 10 * first.log_px_mc_stderr


def test_one_pass_over_the_draws_gives_everything():
    """The decoder sees K draws an example for log p(x), the bound, and each k of the sweep together."""
    oracle, seen = linear_gaussian(1, examples=50), []
    oracle.vae.decoder.register_forward_pre_hook(lambda _, z: seen.append(z[0].numel() // 2))
    evaluate(oracle.vae, source_of(oracle), num_samples=1000, gap=0)
    assert sum(seen) == 50 * 1000
    assert max(seen) <= 2000


@pytest.mark.parametrize("seed", [0, 1])
def test_an_encoder_that_is_off_is_the_amortisation_gap_and_nothing_else(seed):
    oracle, exact = shifted(seed)
    found = evaluate(oracle.vae, source_of(oracle), num_samples=500, gap=40)
    assert found.split_n == 40
    assert abs(found.amortisation_gap - exact) < 4 * found.amortisation_gap_mc_stderr + 0.01
    assert abs(found.approximation_gap) < 4 * found.approximation_gap_mc_stderr + 0.01
    assert abs(found.split_gap - exact) < 4 * found.split_gap_mc_stderr
    assert found.split_gap == pytest.approx(found.approximation_gap + found.amortisation_gap)
    assert found.amortisation_gap_mc_stderr < 0.05 < exact
    # The exact gap is the same for each example: what spread there is comes from the draws.
    assert found.split_gap_stderr < 2 * found.split_gap_mc_stderr


def test_a_correlated_posterior_is_an_approximation_gap():
    oracle = linear_gaussian(5, latent=2, examples=40)
    posterior = oracle.posterior()
    precision = torch.linalg.inv(posterior.covariance_matrix[0])
    best = MultivariateNormal(posterior.loc, torch.diag(1 / precision.diagonal()).expand(40, 2, 2))
    exact = kl_divergence(best, posterior)[0].item()
    found = evaluate(oracle.vae, source_of(oracle), num_samples=500, gap=40)
    assert abs(found.approximation_gap - exact) < 4 * found.approximation_gap_mc_stderr + 0.01
    assert abs(found.split_gap - oracle.kl_to_posterior().mean()) < 4 * found.split_gap_mc_stderr
    assert exact > 0.05
    # The same q as a member of a larger family, which p(z|x) is in.
    own, head = oracle.vae.encoder.head.project, heads.FullNormal((5,), (2,)).double()
    with torch.no_grad():
        head.project.weight.copy_(own.weight[:2])
        head.project.bias.copy_(own.bias[:2])
        head.factor.weight.zero_()
        head.factor.bias.copy_(torch.stack([own.bias[2], torch.zeros(()), own.bias[3]]))
    full = evaluate(with_posterior(oracle, head), source_of(oracle), num_samples=500, gap=40)
    assert abs(full.approximation_gap) < 4 * full.approximation_gap_mc_stderr + 0.01
    assert abs(full.split_gap - oracle.kl_to_posterior().mean()) < 4 * full.split_gap_mc_stderr
    assert not any("far" in note for note in (*found.notes, *full.notes))


def test_a_search_that_may_not_have_arrived_says_so():
    oracle = linear_gaussian(5, examples=10)
    with torch.no_grad():
        # 40 deviations off: further than the steps of the search can go.
        oracle.vae.encoder.head.project.bias[:2] += 40 * oracle.q().stddev[0]
    found = evaluate(oracle.vae, source_of(oracle), num_samples=300)
    assert found.approximation_gap > 1
    assert any("far from the encoder's" in note for note in found.notes)


def test_a_flowed_posterior_is_split_too_and_says_what_it_cannot():
    """The flow turns the components round, so its family is that of all diagonal normals."""
    oracle = linear_gaussian(0, exact_q=True, examples=60)
    head = heads.FlowedNormal((5,), (2,), Chain((Permutation(2),)))
    with torch.no_grad():
        own, turned = oracle.vae.encoder.head.project, [1, 0, 3, 2]
        bias, weight = own.bias[turned], own.weight[turned]
        bias[:2] += 0.5 * oracle.posterior().stddev[0].flip(0)
        head.project.bias.copy_(bias)
        head.project.weight.copy_(weight)
    found = evaluate(with_posterior(oracle, head), source_of(oracle), num_samples=300, gap=30)
    exact = 2 * 0.5 * 0.5**2
    assert abs(found.amortisation_gap - exact) < 4 * found.amortisation_gap_mc_stderr + 0.01
    assert abs(found.approximation_gap) < 4 * found.approximation_gap_mc_stderr + 0.01
    assert found.mutual_information is None
    assert found.rate_per_dimension is None
    assert found.rate is not None
    assert any("64 fixed pairs" in note for note in found.notes)


def test_a_posterior_that_cannot_be_freed_has_no_split_but_a_note():
    oracle = linear_gaussian(0, latent=3, examples=10)
    oracle.vae.encoder.head.forward = lambda features, _: LowRankMultivariateNormal(
        features[:, :3], torch.zeros(len(features), 3, 1).double(), torch.ones(len(features), 3).double()
    )
    found = evaluate(oracle.vae, source_of(oracle), num_samples=50)
    assert found.posterior_gap is not None
    assert (found.split_n, found.split_gap, found.approximation_gap, found.split_khat_bad) == (0, None, None, None)
    assert any("not split" in note for note in found.notes)
    assert not any("not split" in note for note in evaluate(oracle.vae, source_of(oracle), gap=0).notes)


def test_the_rate_goes_where_it_is_said_to():
    oracle = linear_gaussian(1, examples=4000)
    gain, noise = oracle.vae.encoder.head.project.weight[:2].detach(), oracle.q().covariance_matrix[0].detach()
    aggregate = gain @ oracle.evidence().covariance_matrix.detach() @ gain.T + noise
    offset = gain @ oracle.bias.detach() + oracle.vae.encoder.head.project.bias[:2].detach()
    prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    found = evaluate(oracle.vae, source_of(oracle), num_samples=1, gap=0)
    assert sum(found.rate_per_dimension) == pytest.approx(found.rate)
    each = 0.5 * (oracle.q().mean.square() + oracle.q().variance - 1) - oracle.q().stddev.log()
    assert found.rate_per_dimension == pytest.approx(each.mean(0).tolist())
    assert (found.information_n, found.information_outer, found.information_saturated) == (4000, 500, False)
    mutual = 0.5 * (aggregate.logdet() - noise.logdet()).item()
    assert abs(found.mutual_information - mutual) < 4 * found.mutual_information_stderr + 0.02
    marginal = kl_divergence(MultivariateNormal(offset, aggregate), prior).item()
    assert abs(found.marginal_kl - marginal) < 4 * found.marginal_kl_stderr + 0.02


def test_information_at_its_ceiling_is_said_to_be():
    oracle = linear_gaussian(1, examples=12)
    with torch.no_grad():
        oracle.vae.encoder.head.project.bias[2:] -= 6
    found = evaluate(oracle.vae, source_of(oracle), num_samples=5, gap=0)
    assert found.information_saturated
    assert found.mutual_information == pytest.approx(math.log(12), abs=1e-3)
    assert any("can show, 2.48 nats" in note for note in found.notes)


def test_without_a_closed_form_the_rate_is_not_divided():
    oracle = linear_gaussian(1, examples=10)
    vae = VAE(oracle.vae.encoder, oracle.vae.decoder, MixtureOfNormals(2, 3).double()).eval()
    found = evaluate(vae, source_of(oracle), num_samples=20)
    assert found.rate_per_dimension is None
    assert found.mutual_information + found.marginal_kl == pytest.approx(found.rate, abs=4 * found.rate_stderr)


def test_a_point_has_a_distortion_and_active_units_and_nothing_else():
    oracle = linear_gaussian(1, examples=10)
    found = evaluate(with_posterior(oracle, heads.Delta((5,), (2,))), source_of(oracle))
    assert {name for name, value in found.to_json().items() if value is not None} == {
        *("distortion", "distortion_stderr", "num_samples", "n", "active_units", "latent_dim", "likelihood"),
        *("is_likelihood", "notes", "split_n", "units", "conditional", "precision"),
    }
    assert found.split_n == 0


def test_what_trained_the_model_stands_beside_what_is_reported():
    oracle = linear_gaussian(1, examples=10)
    notes = (*IWAE(5).notes(), "of its training")
    found = evaluate(oracle.vae, source_of(oracle), num_samples=2, gap=0, objective=IWAE(5), notes=notes)
    assert found.objective == "IWAE"
    assert found.notes == notes, "said once"
    assert "5 draws" in notes[0]
    assert "plain bound" in notes[0]
    assert evaluate(oracle.vae, source_of(oracle), num_samples=2, gap=0).objective is None


def test_progress_covers_every_stage_and_ends_at_its_total():
    oracle, told = linear_gaussian(1, examples=60), []
    evaluate(oracle.vae, source_of(oracle), num_samples=10, gap=32, on_progress=lambda *pair: told.append(pair))
    done, totals = zip(*told, strict=True)
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]
    # The bound takes 3 batches and the split 2, which cost more than the 600 draws of all examples together.
    assert done[2] == 600 < 0.1 * totals[0]
    assert len(done) == 3 + 2 + 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_samples": 0}, "at least 1 draw"),
        ({"limit": 1}, "at least 2 examples"),
        ({"gap": -1}, r"at least 2 examples.*--gap -1.*0 to leave"),
        ({"gap": 1}, r"--gap 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_paragraph(settings, said):
    oracle = linear_gaussian(1)
    with pytest.raises(UsageError, match=said) as refused:
        evaluate(oracle.vae, source_of(oracle), **settings)
    assert "\n" not in str(refused.value)


def test_pairs_hold_the_same_examples_and_each_difference_is_exact_where_it_has_no_noise():
    first, second = linear_gaussian(1, examples=50), linear_gaussian(1, examples=50)
    with torch.no_grad():
        second.vae.encoder.head.project.bias[:2] += 0.1
    objectives = {"first": ELBO(), "second": IWAE(5)}
    result = compare(
        {"first": first.vae, "second": second.vae}, source_of(first), num_samples=400, gap=20, objectives=objectives
    )
    prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    rates = kl_divergence(second.q(), prior) - kl_divergence(first.q(), prior)
    assert result.rate_difference[1] == pytest.approx(rates.mean().item())
    assert result.rate_difference_stderr[1] == pytest.approx((rates.std() / math.sqrt(50)).item())
    gaps = (second.kl_to_posterior() - first.kl_to_posterior()).mean().item()
    assert abs(result.posterior_gap_difference[1] - gaps) < 4 * result.posterior_gap_difference_stderr[1]
    # One family and one set of true posteriors: what the encoder does is no matter of approximation.
    assert abs(result.approximation_gap_difference[1]) < 4 * result.approximation_gap_difference_stderr[1] + 0.005
    assert abs(result.amortisation_gap_difference[1] - gaps) < 4 * result.amortisation_gap_difference_stderr[1] + 0.005
    assert [e.objective for e in result.evaluations] == ["ELBO", "IWAE"]
    assert result.distortion_difference[0] == result.amortisation_gap_difference_stderr[0] == 0


def test_flows_that_take_a_context_are_split_with_it_freed():
    oracle = linear_gaussian(5, examples=20)
    torch.manual_seed(0)
    head = heads.FlowedNormal((5,), (2,), inverse_autoregressive(2, 2, 8, context_dim=3))
    found = evaluate(with_posterior(oracle, head), source_of(oracle), num_samples=500, gap=20)
    # q is arbitrary, but p(x) is not: with q* as proposal it is found where the encoder's q is hopeless.
    exact = (oracle.log_px().mean() - found.elbo).item()
    assert abs(found.split_gap - exact) < 4 * (found.split_gap_mc_stderr + found.elbo_mc_stderr) + 0.02
    assert found.amortisation_gap > 0.9 * found.split_gap > 1


def test_the_command_says_all_of_it_in_a_process_of_its_own(tmp_path):
    path = tmp_path / "run"
    succeed(call(*tiny(path)))
    options = ("evaluate", path, "--samples", 100, "--limit", 40, "--gap", 6)
    found = succeed(call(*options, "--json")).json
    assert found.keys() == CONTRACT | ADDED
    assert [list(point) for point in found["sweep"]] == [SWEEP] * 3
    assert (found["objective"], found["split_n"], len(found["rate_per_dimension"])) == ("ELBO", 6, 3)
    assert found["information_n"] == 40
    assert found["posterior_gap"] == pytest.approx(found["log_px"] - found["elbo"])
    table = succeed(run(*options))
    assert "\x1b" not in table.out
    assert max(map(len, table.out.splitlines())) <= 80
    assert "40 examples, Bernoulli likelihood, trained with ELBO; nats per example" in table.words
    for name in ("log_px", "elbo", "approximation_gap", "amortisation_gap", "mutual_information", "marginal_kl"):
        sign = -1 if name in ("log_px", "elbo") else 1
        assert f"{sign * found[name]:.3f} ± {found[f'{name}_stderr']:.3f}" in table.words, name
    assert f"± {found['log_px_mc_stderr']:.3f}" in table.words
    assert "with 100 draws an example" in table.words
    assert f"{-found['sweep'][1]['log_px']:.3f}" in table.words
    assert "posterior gap" in table.words
    without = succeed(call(*options[:-2], "--gap", 0))
    assert "amortisation" not in without.words


def test_the_commands_default_is_the_librarys():
    for verb in (judge.evaluate, judge.compare):
        assert inspect.signature(verb).parameters["gap"].default == SPLIT_EXAMPLES
    assert Plan().gap == SPLIT_EXAMPLES


def test_the_contract_holds_for_a_point_too(tmp_path):
    path = tmp_path / "run"
    arguments = ("--data", "digits", "--epochs", 1, "--width", 16, "--latent-dim", 3, "--device", "cpu", "--out", path)
    succeed(call("train", "autoencoder", *arguments))
    found = succeed(call("evaluate", path, "--limit", 20, "--json")).json
    assert found.keys() == CONTRACT | ADDED
    assert found["objective"] == "Reconstruction"
    assert found["sweep"] is None
    words = succeed(call("evaluate", path, "--limit", 20)).words
    assert "trained with Reconstruction" in words
    assert "evidence" not in words.split("Note:")[0]


def steep() -> tuple[VAE, ArraySource]:
    """A model of six pixels whose decoder is so steep that rounding it moves log p(x); and all 64 pictures."""
    torch.manual_seed(0)
    down, up = MLP((6,), (16,)), MLP((1,), (32, 32))
    encoder = heads.Conditional(down, heads.DiagonalNormal(down.out_shape, (1,)))
    decoder = heads.Conditional(up, heads.Bernoulli(up.out_shape, (6,)))
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(4)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
    return VAE(encoder, decoder, StandardNormal(1)).eval(), ArraySource(x, support=Support.BINARY)


def test_evidence_in_bf16_is_that_of_the_rounded_model_which_is_a_model_too():
    vae, pictures = steep()
    exact = {}
    for precision in (Precision.FP32, Precision.BF16):
        with torch.no_grad(), autocast(precision, torch.device("cpu")):
            log_px = quadrature_evidence(vae, pictures.examples(torch.arange(64)).x).log_px
        assert log_px.exp().sum().item() == pytest.approx(1, abs=5e-4)
        exact[precision] = log_px.mean().item()
        found = evaluate(vae, pictures, num_samples=5000, gap=0, precision=precision)
        assert found.precision == precision.value
        assert abs(found.log_px - exact[precision]) < 4 * found.log_px_mc_stderr
        # Far enough apart that the one could not be taken for the other.
        assert found.log_px_mc_stderr < abs(exact[Precision.FP32] - exact[precision]) / 8 or precision is Precision.FP32
        assert any("bf16" in note for note in found.notes) == (precision is Precision.BF16)


def test_the_precision_is_an_option_of_the_command_line(tmp_path):
    succeed(call(*tiny(tmp_path / "run")))
    measuring = ["evaluate", tmp_path / "run", "--samples", 20, "--gap", 0, "--json"]
    plain, rounded = (succeed(call(*measuring, *chosen)).json for chosen in ((), ("--precision", "bf16")))
    assert (plain["precision"], rounded["precision"]) == ("fp32", "bf16")
    assert plain["log_px"] != rounded["log_px"]
    assert plain["log_px"] == pytest.approx(rounded["log_px"], abs=0.1)
    refused = call(*measuring, "--precision", "fp8")
    assert refused.status == 2
    assert "auto, fp32, bf16" in refused.words
