"""What several models put together into the holes of a table, against mixtures that are known exactly."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributions as td

import lowerbound as lb
from lowerbound.data import Column, Kind
from lowerbound.errors import UsageError
from lowerbound.heads import Columns

NAN = float("nan")
REALS = (Column("a", Kind.REAL), Column("b", Kind.REAL, 3.0, 2.0))
MIXED = (
    Column("colour", Kind.CATEGORICAL, levels=tuple("uvw"), shares=(0.2, 0.2, 0.6)),
    Column("count", Kind.COUNT, 1.0, 0.5),
    Column("real", Kind.REAL),
)


def blind(columns, bias, **settings):
    """A model whose cells do not depend on z: they have the distributions that the bias of the head says."""
    torch.manual_seed(0)
    front = lb.nn.CellInput(columns, lb.nn.MLP((lb.nn.CellInput.width_of(columns),), (4,)))
    head = Columns((4,), columns, heavy_tails=False, least_scale=1e-9, **settings)
    vae = lb.VAE(
        lb.heads.Conditional(front, lb.heads.DiagonalNormal((4,), (2,))),
        lb.heads.Conditional(lb.nn.MLP((2,), (4,)), head),
        lb.priors.StandardNormal(2),
    ).double()
    with torch.no_grad():
        head.project.weight.zero_()
        head.project.bias.copy_(torch.tensor(bias))
    return vae


@pytest.fixture(scope="module")
def two():
    """Models of two real columns, of which the second is N(-2, 1) to one and N(4, 0.25) to the other."""
    return blind(REALS, [0.0, -2.0, 0.0, 0.0]), blind(REALS, [0.0, 4.0, 0.0, -1.3862943611198906])


def test_numbers_and_intervals_are_those_of_the_mixture(two):
    x = torch.tensor([[0.5, NAN]]).double()
    found = lb.impute(two, x, 40_000, interval=0.8)
    assert found.x[0, 0] == found.low[0, 0] == found.high[0, 0] == 0.5
    assert found.x[0, 1].item() == pytest.approx(1.0, abs=1e-6)
    # A tenth of the mass below is a fifth of the first normal's, and a tenth above a fifth of the second's.
    low, high = (td.Normal(m, s).icdf(torch.tensor(p)) for m, s, p in ((-2.0, 1.0, 0.2), (4.0, 0.25, 0.8)))
    assert found.low[0, 1].item() == pytest.approx(low.item(), abs=0.04)
    assert found.high[0, 1].item() == pytest.approx(high.item(), abs=0.02)
    alone = [lb.impute(vae, x, 40_000).ess for vae in two]
    # Of M models of equal say, M^2 over the sum of 1/ess.
    torch.testing.assert_close(found.ess, 4 / sum(1 / ess for ess in alone), rtol=0.05, atol=0)


def test_a_completed_table_is_of_one_model_and_together_they_are_the_mixture(two):
    x = torch.tensor([[0.5, NAN], [NAN, NAN]]).double().repeat(50, 1)
    drawn = lb.impute(two, x, 500, draws=41).draws
    assert drawn.shape == (41, 100, 2)
    assert torch.equal(drawn[:, ::2, 0], torch.full((41, 50), 0.5).double())
    first, second = drawn[0::2, :, 1], drawn[1::2, :, 1]
    assert (len(first), len(second)) == (21, 20)
    for cells, mean, scale in ((first, -2.0, 1.0), (second, 4.0, 0.25)):
        assert cells.mean().item() == pytest.approx(mean, abs=4 * scale / cells.numel() ** 0.5)
        assert cells.std().item() == pytest.approx(scale, rel=0.1)
    # With fewer tables than models some models make none.
    assert (lb.impute(two, x, 50, draws=1).draws[0, :, 1] < 2.5).all()


def test_labels_go_by_their_mean_probabilities_and_counts_are_rounded_once():
    def made(probs, count):
        return blind(MIXED, [0.0, 0.0, torch.tensor(count).log().item(), 0.0, *torch.tensor(probs).log().tolist()])

    vaes = [made([0.55, 0.44, 0.01], 1.4), made([0.01, 0.44, 0.55], 2.4), made([0.5, 0.4, 0.1], 0.4)]
    hole = torch.tensor([[NAN, NAN, 0.0]]).double()
    assert [lb.impute(vae, hole, 20).x[0, 0].item() for vae in vaes] == [0.0, 2.0, 0.0]
    # Of 0.353, 0.427 and 0.22 the second is the most, which is none's own guess; and the mean count is 1.4.
    found = lb.impute(vaes, hole, 20).x[0]
    assert found.tolist() == [1.0, 1.0, 0.0]
    # (1.4 + 2.4) / 2 is nearest to 2, and not to the mean of 1 and 2.
    assert lb.impute(vaes[:2], hole, 20).x[0, 1] == 2.0


def test_a_single_model_in_a_list_is_that_model_and_its_state_is_left_alone(two):
    vae = copy.deepcopy(two[0]).train()
    x = torch.tensor([[NAN, 0.2], [0.1, NAN]]).double()
    before = torch.get_rng_state()
    one, listed = (lb.impute(models, x, 30, draws=3) for models in (vae, [vae]))
    for name in ("x", "low", "high", "draws", "ess"):
        assert torch.equal(getattr(one, name), getattr(listed, name))
    lb.impute([vae, two[1]], x, 30)
    assert vae.training
    assert torch.equal(torch.get_rng_state(), before)


def test_models_that_read_tables_differently_are_refused(two):
    x = torch.tensor([[0.5, NAN]]).double()
    for columns, said in (
        ((REALS[0], replace(REALS[1], scale=2.5)), "differs from model 0 in the columns b"),
        ((REALS[0], replace(REALS[1], name="c")), "columns b, c"),
        (REALS[::-1], "the order of columns"),
    ):
        with pytest.raises(UsageError, match=f"model 2 .*{said}"):
            lb.impute([*two, blind(columns, [0.0] * 4)], x)
    with pytest.raises(UsageError, match="got none"):
        lb.impute([], x)
    plain = lb.recipes.mlp(lb.open_data("digits"), width=8, latent_dim=2).vae
    with pytest.raises(UsageError, match="by a model of tables"):
        lb.impute([two[0], plain], x)


def test_how_often_training_repeated_rows_does_not_part_models():
    bias = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    repeated = (replace(MIXED[0], repeats=(1.0, 2.0, 3.0)), *MIXED[1:])
    hole = torch.tensor([[NAN, 1.0, 0.0]]).double()
    vaes = blind(MIXED, bias), blind(repeated, bias)
    drawn = lb.impute(vaes, hole.repeat(500, 1), 20, draws=20).draws[..., 0].long()
    shares = [torch.bincount(part.flatten(), minlength=3) / part.numel() for part in (drawn[0::2], drawn[1::2])]
    torch.testing.assert_close(shares[0], torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    # The second's rows of the later labels were seen more often than they occur.
    torch.testing.assert_close(shares[1], torch.tensor([6.0, 3.0, 2.0]) / 11, atol=0.03, rtol=0)
