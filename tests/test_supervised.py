"""The bound that takes in the factors of some examples, against closed forms; and the recipe that trains with it."""

import json
import math
from dataclasses import replace

import pytest
import torch
from command import call, succeed
from torch import nn

import lowerbound as lb
from lowerbound import heads, priors, spec
from lowerbound.data import Factors, PartlyTold, generator, partly_told
from lowerbound.distributions import DiagonalNormal
from lowerbound.errors import UsageError
from lowerbound.experiment import prepare
from lowerbound.objectives import ELBO, BetaTC, WithFactors
from lowerbound.recipes import RECIPES

CPU = torch.device("cpu")
WHOLE = WithFactors(ELBO(), centres=(1.0, -2.0), widths=(2.0, 0.5), scale=0.3)


def small(latent: int = 3) -> lb.VAE:
    torch.manual_seed(0)
    down, up = lb.nn.MLP((5,), (8,)), lb.nn.MLP((latent,), (8,))
    return lb.VAE(
        heads.Conditional(down, heads.DiagonalNormal(down.out_shape, (latent,))),
        heads.Conditional(up, heads.Normal(up.out_shape, (5,))),
        priors.StandardNormal(latent),
    ).double()


@pytest.mark.verifies(WithFactors, against="known truth")
def test_the_term_is_the_expected_log_density_of_the_factors():
    loc, log_scale = torch.tensor([[0.3, -1.0, 2.0]]).double(), torch.tensor([[-1.0, -0.5, 0.0]]).double()
    q = DiagonalNormal(loc, log_scale)
    factors = torch.tensor([[1.9, -2.4]]).double()
    z = q.sample((400_000,))[:, 0, :2]
    # v = c + w z, with noise of standard deviation w s.
    centres, widths = torch.tensor(WHOLE.centres).double(), torch.tensor(WHOLE.widths).double()
    log_p = torch.distributions.Normal(centres + widths * z, widths * WHOLE.scale).log_prob(factors).sum(1)
    error = float(log_p.std() / math.sqrt(len(log_p)))
    assert float(WHOLE.cost(q, factors)) == pytest.approx(-float(log_p.mean()), abs=4 * error)


@pytest.mark.verifies(WithFactors, against="closed form")
def test_the_bound_is_tight_at_the_posterior_of_a_model_of_factors_alone():
    # Without x, p(v) = N(c, w^2 (1 + s^2)), and the posterior of z given v is normal.
    s, c, w, v = 0.3, 1.0, 2.0, 1.9
    u = (v - c) / w
    mean, variance = u / (1 + s**2), s**2 / (1 + s**2)
    q = DiagonalNormal(torch.tensor([[mean]]).double(), torch.tensor([[math.log(variance) / 2]]).double())
    p = DiagonalNormal(torch.zeros(1).double(), torch.zeros(1).double())
    one = WithFactors(ELBO(), (c,), (w,), s)
    bound = -one.cost(q, torch.tensor([[v]]).double()) - torch.distributions.kl_divergence(q, p)
    expected = torch.distributions.Normal(c, w * math.sqrt(1 + s**2)).log_prob(torch.tensor(v).double())
    assert float(bound) == pytest.approx(float(expected), abs=1e-6)


def test_what_is_not_known_costs_nothing_and_has_no_gradient():
    vae, x = small(), torch.randn(4, 5, generator=generator(0)).double()
    factors = torch.tensor([[0.5, math.nan], [math.nan, math.nan], [math.nan, 1.0], [1.0, 2.0]]).double()
    q = vae.encoder(x)
    cost = WHOLE.cost(q, factors)
    assert cost[1] == 0
    whole = WHOLE.cost(q, torch.nan_to_num(factors))
    only_first = WithFactors(ELBO(), (1.0,), (2.0,), 0.3).cost(q, factors[:, :1])
    assert torch.equal(cost[0], only_first[0])
    assert torch.equal(cost[3], whole[3])
    cost.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())


def test_the_numbers_of_x_stay_what_they_are_and_the_loss_takes_the_term_in():
    vae, x = small(), torch.randn(4, 5, generator=generator(0)).double()
    factors = torch.rand(4, 2, generator=generator(1)).double()

    def terms(objective):
        torch.manual_seed(3)
        return objective(vae, x)

    plain, told, untold = terms(ELBO()), terms(WHOLE.given(factors)), terms(WHOLE.given(None))
    assert torch.equal(told.elbo, plain.elbo)
    assert torch.equal(untold.loss, plain.loss)
    torch.testing.assert_close(told.loss, plain.loss + WHOLE.cost(vae.encoder(x), factors))
    assert not vae.encoder._forward_hooks
    assert ELBO().given(factors) == ELBO()


def test_it_describes_itself_and_refuses_what_cannot_be():
    again = spec.build(spec.describe(WHOLE))
    assert again == WHOLE
    with torch.device("meta"):
        assert spec.build(spec.describe(WHOLE)) == WHOLE
    with pytest.raises(UsageError, match="one width above 0"):
        WithFactors(ELBO(), (0.0,), (1.0, 2.0))
    with pytest.raises(UsageError, match="one width above 0"):
        WithFactors(ELBO(), (0.0,), (0.0,))
    with pytest.raises(UsageError, match="at least as many components"):
        WHOLE.check(small(latent=1))
    WHOLE.check(small(latent=2))
    assert any("told the true factors" in note for note in WHOLE.notes())


# what is told


def test_few_examples_tell_their_factors_and_come_often():
    values = torch.arange(200).float().reshape(100, 2)
    whole = lb.ArraySource(torch.zeros(100, 4, dtype=torch.uint8), factors=Factors(("a", "b"), values, (False, False)))
    few = partly_told(whole, share=0.03, presence=0.25, seed=5)
    known = few.factors.values.isfinite().all(1)
    assert int(known[:100].sum()) == 3
    assert int(known.sum()) == len(few) - 97
    assert int(known.sum()) / len(few) == pytest.approx(0.25, abs=0.02)
    batch = few.examples(torch.arange(len(few)))
    torch.testing.assert_close(batch.factors, few.factors.values, equal_nan=True)
    told = batch.factors[:100][known[:100]]
    assert torch.equal(told, values[known[:100]])
    assert partly_told(whole, 0.03, 0.25, seed=5).fingerprint == few.fingerprint
    assert partly_told(whole, 0.03, 0.25, seed=6).fingerprint != few.fingerprint
    assert len(partly_told(whole, 0.5, 0.1)) == 100
    assert few.to(CPU).factors.values.shape == few.factors.values.shape


def test_shares_that_cannot_be_and_sources_without_factors_are_refused():
    plain = lb.ArraySource(torch.zeros(10, 4, dtype=torch.uint8))
    with pytest.raises(UsageError, match="camera does"):
        PartlyTold(plain, torch.ones(10, dtype=torch.bool))
    for share, presence in ((0, 0.1), (1.1, 0.1), (0.1, 1.0)):
        with pytest.raises(UsageError, match="above 0 and at most 1"):
            partly_told(plain, share, presence)


# the recipe and the commands


@pytest.fixture(scope="module")
def data() -> lb.Data:
    whole = lb.open_data("camera")
    return replace(whole, train=whole.train.slice(0, 3000), valid=whole.valid.slice(0, 200))


def test_told_a_few_factors_the_components_are_the_factors(data):
    told = prepare(RECIPES["camera"], data, {"labelled": 0.1, "width": 128, "epochs": 8})
    assert isinstance(told.objective, WithFactors)
    known = told.data.train.factors.values.isfinite().all(1)
    assert 0 < int(known[:3000].sum()) == 300
    lb.fit(told.vae, told.data, told.objective, told.training, device=CPU)
    codes = lb.encode(told.vae, data.test)["loc"]
    factors = data.test.factors.values
    each = torch.corrcoef(torch.cat([codes, factors], 1).T)[:3, 3:].abs()
    # How blurred a photograph is takes longer to learn.
    assert each.diagonal()[:2].min() > 0.9
    assert (each - each.diagonal().diag())[:2].max() < 0.2


def test_with_nothing_told_nothing_is_known_to_the_training(data):
    free = prepare(RECIPES["camera"], data, {"labelled": 0.0, "latent_dim": 5})
    assert isinstance(free.objective, BetaTC)
    assert free.vae.latent_shape == (5,)
    assert free.data.train is data.train


def test_the_recipe_refuses_data_without_factors_and_too_few_that_are_told(data):
    plain = lb.Data("mine", *[lb.ArraySource(torch.zeros(9, 4, dtype=torch.uint8))] * 3)
    with pytest.raises(UsageError, match="--data camera"):
        prepare(RECIPES["camera"], plain, {})
    with pytest.raises(UsageError, match="Raise --labelled"):
        prepare(RECIPES["camera"], data, {"labelled": 1e-9})


def test_the_commands_train_and_say_how_the_factors_are_recovered(tmp_path):
    run = str(tmp_path / "run")
    short = ("--epochs", "1", "--width", "32", "--batch-size", "1000", "--device", "cpu")
    succeed(call("train", "camera", "--data", "camera", "--out", run, *short))
    asked = ("evaluate", run, "--samples", "2", "--gap", "0", "--limit", "400", "--device", "cpu")
    found = succeed(call(*asked, "--json")).json
    scores = (
        "mig", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap", "factor_vae", "info_m",
        "info_c", "info_e",
    )  # fmt: skip
    assert all(0 <= found[name] <= 1 for name in scores)
    assert "recovered" not in found
    assert any("told the true factors" in note for note in found["notes"])
    words = succeed(call(*asked)).words
    assert "InfoM" in words
    assert "FactorVAE" in words
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "WithFactors" in json.dumps(record)
    few = succeed(call("evaluate", run, "--samples", "2", "--gap", "0", "--limit", "50", "--json")).json
    assert "mig" not in few
    assert any("at least 200 examples" in note for note in few["notes"])


def test_data_without_factors_are_evaluated_as_before():
    vae = small()
    source = lb.ArraySource(torch.randn(300, 5, generator=generator(0)), support=lb.Support.REAL)
    found = lb.evaluate(vae.float(), source, num_samples=2, gap=0)
    assert found.recovered is None
    assert "mig" not in found.to_json()
    assert isinstance(vae, nn.Module)
