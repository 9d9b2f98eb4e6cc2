"""Models of tables against exact answers: densities of mixed cells, holes, what is filled into them, given cells."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributions as td
from parts import scramble

import lowerbound as lb
from lowerbound import mixed, spec
from lowerbound.data import ArraySource, Column, Data, Kind, Support, Table, View, generator
from lowerbound.errors import UsageError
from lowerbound.imputation import sample_given
from lowerbound.training import Precision, autocast

NAN = float("nan")
COLUMNS = (
    Column("real", Kind.REAL, 2.0, 3.0),
    Column("size", Kind.ORDINAL, levels=tuple("abcd"), shares=(0.1, 0.2, 0.3, 0.4)),
    Column("price", Kind.POSITIVE, 1.0, 0.5),
    Column("count", Kind.COUNT, 1.0, 0.5),
    Column("sick", Kind.BINARY, levels=("n", "y"), shares=(0.9, 0.1)),
    Column("colour", Kind.CATEGORICAL, levels=tuple("uvw"), shares=(0.2, 0.2, 0.6)),
    Column("shape", Kind.CATEGORICAL, levels=tuple("uv"), shares=(0.25, 0.75)),
    Column("grade", Kind.ORDINAL, levels=("lo", "hi"), shares=(0.5, 0.5)),
    Column("day", Kind.DATE, 1e4, 10.0, decimals=0),
)
LEVELS = {1: 4, 4: 2, 5: 3, 6: 2, 7: 2}


def front(columns=COLUMNS, hide=0.0, width=6):
    return lb.nn.CellInput(columns, lb.nn.MLP((lb.nn.CellInput.width_of(columns),), (width,)), hide)


def model(columns=COLUMNS, latent=2, hide=0.0, **settings):
    torch.manual_seed(0)
    down, up = front(columns, hide), lb.nn.MLP((latent,), (6,))
    vae = lb.VAE(
        lb.heads.Conditional(down, lb.heads.DiagonalNormal((6,), (latent,))),
        lb.heads.Conditional(up, lb.heads.Columns((6,), columns, **settings)),
        lb.priors.StandardNormal(latent),
    )
    return scramble(vae)


def rows(count=6, seed=0, share=0.3):
    torch.manual_seed(seed)
    x = model().decoder(torch.randn(count, 2)).sample()
    return x.masked_fill(torch.rand(x.shape) < share, NAN)


# densities


def test_each_kind_of_cell_has_the_density_or_probability_of_its_kind():
    torch.manual_seed(1)
    head = scramble(lb.heads.Columns((4,), COLUMNS)).double()
    p = head(torch.randn(5, 4).double(), torch.Size([5]))
    x = p.sample()
    parts = {type(cells).__name__ + str(index.tolist()): cells for index, cells in p.parts}
    real, positive, counts = parts["Measured[0, 8]"], parts["Measured[2]"], parts["Counts[3]"]
    student = td.StudentT(real.degrees, real.loc, real.log_scale.exp())
    unit = torch.tensor([3.0, 10.0]).double().log()
    torch.testing.assert_close(real.log_prob(x[:, [0, 8]]), student.log_prob(x[:, [0, 8]]) - unit)
    # In the file's own units: a log-normal density of the price itself.
    price = (1.0 + 0.5 * x[:, [2]]).exp()
    log_normal = td.LogNormal(1.0 + 0.5 * positive.loc, 0.5 * positive.log_scale.exp())
    torch.testing.assert_close(positive.log_prob(x[:, [2]]), log_normal.log_prob(price))
    r = counts.each.log_total.exp()
    negative = td.NegativeBinomial(r, logits=counts.each.log_mean - counts.each.log_total)
    torch.testing.assert_close(counts.log_prob(x[:, [3]]), negative.log_prob(x[:, [3]]))
    total = sum(cells.log_prob(x[:, index]).sum(-1) for index, cells in p.parts)
    torch.testing.assert_close(p.log_prob(x), total)


def test_ordinal_labels_have_cumulative_logits():
    head = scramble(lb.heads.Columns((4,), COLUMNS)).double()
    features = torch.randn(3, 4, generator=generator(0)).double()
    levels = {tuple(i.tolist()): c for i, c in head(features, torch.Size([3])).parts}[(1, 7)]
    steps = torch.nn.functional.softplus(head.steps[0, 1:]) + 1e-3
    thresholds = torch.cat([head.steps[0, :1], steps]).cumsum(0)
    (location,) = head.project(features)[:, -2:-1].T
    below = torch.sigmoid(thresholds - location[:, None])
    torch.testing.assert_close(levels.log_probs[:, 0].exp().cumsum(-1)[:, :-1], below)
    assert (thresholds.diff() > 0).all()


@pytest.mark.parametrize("column", LEVELS)
def test_the_probabilities_of_labels_sum_to_one(column):
    p = model().double().decoder(torch.randn(7, 2, generator=generator(0)).double())
    x = torch.full((LEVELS[column], 1, len(COLUMNS)), NAN, dtype=torch.float64)
    x[:, 0, column] = torch.arange(LEVELS[column])
    torch.testing.assert_close(p.log_prob(x).exp().sum(0), torch.ones(7).double())


@pytest.mark.parametrize("column", [0, 2, 8])
@pytest.mark.parametrize("heavy_tails", [True, False])
def test_densities_integrate_to_one_over_the_files_own_units(column, heavy_tails):
    p = model(heavy_tails=heavy_tails).double().decoder(torch.randn(4, 2, generator=generator(0)).double())
    v = torch.linspace(-600, 600, 120_001).double() if column != 2 else torch.linspace(1e-5, 600, 120_001).double()
    if column == 8:
        v = 1e4 + 4 * v
    chosen = COLUMNS[column]
    x = torch.full((len(v), 1, len(COLUMNS)), NAN, dtype=torch.float64)
    x[:, 0, column] = ((v.log() if column == 2 else v) - chosen.loc) / chosen.scale
    mass = torch.trapezoid(p.log_prob(x).exp(), v, dim=0)
    torch.testing.assert_close(mass, torch.ones(4).double(), atol=2e-3, rtol=0)


def test_the_density_does_not_depend_on_the_units_of_x():
    v = torch.linspace(-3, 9, 5).double()[:, None]
    found = []
    for loc, scale in ((2.0, 3.0), (0.0, 1.0)):
        head = lb.heads.Columns(
            (1,), (Column("v", Kind.REAL, loc, scale),), heavy_tails=False, least_scale=1e-9
        ).double()
        with torch.no_grad():
            head.project.weight.zero_()
            head.project.bias.copy_(torch.tensor([(1.0 - loc) / scale, math.log(2.0 / scale)]))
        found.append(head(torch.zeros(5, 1).double(), torch.Size([5])).log_prob((v - loc) / scale))
    torch.testing.assert_close(found[0], td.Normal(1.0, 2.0).log_prob(v[:, 0]))
    torch.testing.assert_close(*found)


def test_it_begins_at_the_columns_own_frequencies():
    head = lb.heads.Columns((4,), COLUMNS)
    with torch.no_grad():
        head.project.weight.zero_()
    p = head(torch.zeros(1, 4), torch.Size([1]))
    for place, column in enumerate(COLUMNS):
        if column.levels:
            x = torch.full((column.num_levels, len(COLUMNS)), NAN)
            x[:, place] = torch.arange(column.num_levels)
            torch.testing.assert_close(p.log_prob(x).exp(), torch.tensor(column.shares), atol=1e-4, rtol=0)
    assert p.mean[0, 3] == round(math.expm1(1.0))
    assert torch.equal(head.natural_mean(torch.zeros(9)), head.project.bias)


def test_draws_have_the_distribution_whose_density_is_given():
    p = model().decoder(torch.randn(1, 2, generator=generator(3)))
    torch.manual_seed(0)
    x = p.sample((40_000,))[:, 0]
    for place, levels in LEVELS.items():
        probe = torch.full((levels, 1, len(COLUMNS)), NAN)
        probe[:, 0, place] = torch.arange(levels)
        share = torch.bincount(x[:, place].long(), minlength=levels) / len(x)
        torch.testing.assert_close(share, p.log_prob(probe).exp()[:, 0].detach(), atol=0.012, rtol=0)
    measured = {int(i): cells for index, cells in p.parts for i in index if isinstance(cells, mixed.Measured)}
    for place in (0, 2, 8):
        cells, at = measured[place], 1 if place == 8 else 0
        inside = (x[:, place] - cells.loc[0, at]).abs() < cells.log_scale[0, at].exp()
        expected = 2 * student_cdf(cells.degrees[at]) - 1 if cells.degrees is not None else 0.6827
        assert inside.float().mean().item() == pytest.approx(float(expected), abs=0.012)


def student_cdf(degrees):
    """P(t < 1), by quadrature."""
    t = torch.linspace(-500, 1, 100_001).double()
    return torch.trapezoid(td.StudentT(degrees.double().detach()).log_prob(t).exp(), t)


# holes


def test_a_missing_cell_counts_for_nothing_and_has_no_gradient():
    p = model().decoder(torch.randn(6, 2))
    x = p.sample()
    whole = p.log_prob(x)
    for place in range(len(COLUMNS)):
        holed = x.clone()
        holed[:, place] = NAN
        alone = torch.full_like(x, NAN)
        alone[:, place] = x[:, place]
        torch.testing.assert_close(p.log_prob(holed) + p.log_prob(alone), whole, rtol=1e-4, atol=1e-4)
    assert p.log_prob(torch.full_like(x, NAN)).tolist() == [0.0] * 6


@pytest.mark.parametrize("objective", [lb.ELBO(), lb.objectives.IWAE(4, lb.objectives.DoublyReparameterised())])
def test_gradients_are_numbers_with_any_holes(objective):
    vae = model(hide=0.5)
    x = rows(8)
    x[0] = NAN
    terms = objective(vae, x)
    terms.loss.mean().backward()
    assert terms.loss.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    # A row without cells costs nothing but its rate.
    assert terms.distortion[0].item() == 0


@pytest.mark.parametrize("value", [1e30, -1e30, 1e38])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_extreme_cells_stay_finite(value, precision):
    vae = model()
    # As far as a column can hold it.
    most = [1e38 if c.kind.is_measured else c.num_levels - 1 if c.levels else 2.0**24 for c in COLUMNS]
    least = [-1e38 if c.kind.is_measured else 0.0 for c in COLUMNS]
    x = torch.full((2, len(COLUMNS)), value).clamp(torch.tensor(least), torch.tensor(most))
    x[1, 0] = NAN
    with autocast(precision, torch.device("cpu")):
        terms = lb.ELBO()(vae, x)
    assert terms.loss.isfinite().all()
    terms.loss.mean().backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters() if p.grad is not None)


def test_the_network_sees_cells_and_where_they_are():
    network = front()
    x = rows(5)
    spread = network.spread(x)
    assert spread.shape == (5, lb.nn.CellInput.width_of(COLUMNS))
    assert torch.equal(spread[:, -len(COLUMNS) :].bool(), ~x.isnan())
    other = x.clone()
    other[x.isnan()] = 0.0  # a zero that is there is not a hole
    assert not torch.equal(network.spread(other), spread)
    assert spread.isfinite().all()


def test_cells_are_hidden_from_the_encoder_in_training_alone():
    network = front(hide=1.0)
    x = rows(200, share=0.0)
    network.eval()
    assert torch.equal(network(x), network(x))
    network.train()
    seen = []
    network.network.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, -len(COLUMNS) :]))
    network(x)
    # The share of hidden cells of a row is uniform: a half in the mean, with a variance of 1/12 between rows.
    shown = seen[0].mean(1)
    assert shown.mean().item() == pytest.approx(0.5, abs=0.06)
    assert shown.std().item() == pytest.approx(math.sqrt(1 / 12 + 1 / 6 / len(COLUMNS)), abs=0.04)


@pytest.mark.parametrize(
    "part", [front(hide=0.25), lb.heads.Columns((4,), COLUMNS, heavy_tails=False, least_scale=0.1)]
)
def test_parts_are_described_and_built_again(part):
    with torch.device("meta"):
        built = spec.build(spec.describe(part))
    assert spec.describe(built) == spec.describe(part)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in part.state_dict().items()}


def test_what_means_nothing_is_refused():
    with pytest.raises(UsageError, match="takes inputs of shape"):
        lb.nn.CellInput(COLUMNS, lb.nn.MLP((3,), (4,)))
    with pytest.raises(UsageError, match="hide"):
        front(hide=1.5)
    for columns in ((), (Column("a", Kind.BINARY, levels=("a", "b", "c")),), (Column("a", Kind.CATEGORICAL),)):
        with pytest.raises(UsageError, match="at least one column"):
            lb.heads.Columns((4,), columns)
    with pytest.raises(UsageError, match="least_scale"):
        lb.heads.Columns((4,), COLUMNS, least_scale=0.0)
    with pytest.raises(UsageError, match="means nothing"):
        lb.heads.Columns((4,), COLUMNS).check(Support.REAL)
    with pytest.raises(UsageError, match="means nothing"):
        lb.heads.Normal((4,), (9,)).check(Support.TABLE)
    with pytest.raises(UsageError, match=r"tabular learns tables"):
        lb.recipes.tabular(lb.open_data("digits"))
    plain = lb.recipes.mlp(lb.open_data("digits"), width=8, latent_dim=2).vae
    with pytest.raises(UsageError, match="filled in by a model of tables"):
        lb.impute(plain, torch.zeros(1, 1, 8, 8))
    for wrong in ({"interval": 1.0}, {"draws": -1}, {"num_samples": 0}):
        with pytest.raises(UsageError):
            lb.impute(model(), rows(), **wrong)


# what is filled in, against the conditional distribution of a linear-Gaussian model


class Linear:
    """x = A z + b + noise, z standard normal, as a table of real columns: everything about it is known."""

    def __init__(self, dim=4, latent=2):
        draws = generator(7)
        self.a = torch.randn(dim, latent, generator=draws).double()
        self.b = torch.randn(dim, generator=draws).double()
        self.scale = 0.3 + 0.4 * torch.rand(dim, generator=draws).double()
        columns = tuple(Column(f"c{d}", Kind.REAL, 5.0 * d, 1.0 + d) for d in range(dim))
        self.columns = columns
        down = front(columns)
        up = lb.nn.MLP((latent,), (latent,), torch.nn.Identity())
        head = lb.heads.Columns((latent,), columns, heavy_tails=False, least_scale=1e-12)
        torch.manual_seed(0)
        self.vae = lb.VAE(
            lb.heads.Conditional(down, lb.heads.DiagonalNormal((6,), (latent,))),
            lb.heads.Conditional(up, head),
            lb.priors.StandardNormal(latent),
        ).double()
        with torch.no_grad():
            up.layers[0].weight.copy_(torch.eye(latent))
            up.layers[0].bias.zero_()
            head.project.weight.copy_(torch.cat([self.a, torch.zeros_like(self.a)]))
            head.project.bias.copy_(torch.cat([self.b, self.scale.log()]))
            # Not far from the prior: a q with little of p(z|x) under it would need more draws than a test has.
            for parameter in self.vae.encoder.head.parameters():
                parameter.mul_(0.1)
        self.vae.eval()

    def conditional(self, row):
        """The mean and standard deviation of each cell given those that are there, in units of x."""
        there = ~row.isnan()
        cov = self.a @ self.a.T + self.scale.square().diag()
        gain = cov[:, there] @ torch.linalg.inv(cov[there][:, there])
        mean = self.b + gain @ (row - self.b)[there]
        return mean, (cov - gain @ cov[there]).diagonal().clamp_min(0).sqrt()

    def log_px(self, row):
        there = ~row.isnan()
        cov = self.a @ self.a.T + self.scale.square().diag()
        unit = sum(math.log(c.scale) for c, t in zip(self.columns, there.tolist(), strict=True) if t)
        return td.MultivariateNormal(self.b[there], cov[there][:, there]).log_prob(row[there]) - unit


@pytest.fixture(scope="module")
def linear():
    return Linear()


@pytest.fixture(scope="module")
def holed():
    x = torch.tensor([[0.3, -1.0, 0.7, 0.1], [1.5, 0.2, -0.4, 2.0], [-0.5, 0.0, 0.5, 1.0]]).double()
    x[0, 1] = x[1, 0] = x[1, 2] = x[2, 3] = NAN
    return x


@pytest.mark.verifies(lb.heads.Columns, against="closed form")
def test_the_evidence_is_that_of_the_observed_cells(linear, holed):
    torch.manual_seed(0)
    found = lb.log_evidence(linear.vae, holed, 20_000)
    expected = torch.stack([linear.log_px(row) for row in holed])
    torch.testing.assert_close(found.log_px, expected, atol=0.05, rtol=0)


def test_filled_cells_are_the_conditional_means_and_the_rest_is_untouched(linear, holed):
    found = lb.impute(linear.vae, holed, 200_000, draws=4000, interval=0.8)
    missing = holed.isnan()
    mean, scale = (torch.stack(parts) for parts in zip(*(linear.conditional(row) for row in holed), strict=True))
    # What the effective number of draws promises.
    assert ((found.x - mean).abs() < 5 * scale / found.ess.sqrt()[:, None])[missing].all()
    torch.testing.assert_close(found.x[missing], mean[missing], atol=0.05, rtol=0)
    for kept in (found.x, found.low, found.high, *found.draws[:3]):
        assert torch.equal(kept[~missing], holed[~missing])
    width = scale * td.Normal(0.0, 1.0).icdf(torch.tensor(0.9))
    torch.testing.assert_close(found.low[missing], (mean - width)[missing], atol=0.06, rtol=0)
    torch.testing.assert_close(found.high[missing], (mean + width)[missing], atol=0.06, rtol=0)
    torch.testing.assert_close(found.draws.mean(0)[missing], mean[missing], atol=0.06, rtol=0)
    torch.testing.assert_close(found.draws.std(0)[missing], scale[missing], atol=0.06, rtol=0)
    assert ((found.ess > 1) & (found.ess <= 200_000)).all()


def test_an_interval_of_a_label_is_none_and_its_value_is_one_of_its_labels():
    x = rows(20, share=0.5)
    found = lb.impute(model(), x, 200, draws=2)
    missing = x.isnan()
    for place, column in enumerate(COLUMNS):
        cells = found.x[:, place]
        if column.levels:
            assert found.low[missing[:, place], place].isnan().all()
            assert ((cells >= 0) & (cells < column.num_levels) & (cells == cells.round())).all()
        else:
            assert (found.low[:, place] <= found.high[:, place]).all()
    assert not found.x.isnan().any()
    assert not found.draws.isnan().any()
    assert torch.equal(lb.impute(model(), x, 200, draws=2).draws, found.draws)


def test_rows_with_given_cells_have_the_conditional_distribution(linear):
    given = torch.tensor([NAN, 1.2, NAN, -0.3], dtype=torch.float64)
    made, effective = sample_given(linear.vae, given, 4000)
    mean, scale = linear.conditional(given)
    assert (made[:, 1] == 1.2).all()
    torch.testing.assert_close(made.mean(0)[[0, 2]], mean[[0, 2]], atol=0.06, rtol=0)
    torch.testing.assert_close(made.std(0)[[0, 2]], scale[[0, 2]], atol=0.06, rtol=0)
    assert effective > 4000


def test_given_labels_are_kept_and_their_probability_is_the_share_of_effective_draws():
    vae, given = model(), torch.full((len(COLUMNS),), NAN)
    given[5] = 0.0
    made, _ = sample_given(vae, given, 50)
    assert (made[:, 5] == 0).all()
    assert not made.isnan().any()
    with pytest.raises(UsageError, match="at least 1 row"):
        sample_given(vae, given, 0)


# the recipe


def table_of(x, columns):
    source = ArraySource(x, support=Support.TABLE)
    half = len(x) // 2
    return Data(
        "t", source.slice(0, half), None, source.slice(half, len(x)), View(reading=Table(columns, is_fitted=True))
    )


BALANCED = (
    Column("v", Kind.REAL, 2.0, 3.0),
    Column("class", Kind.CATEGORICAL, levels=tuple("abc"), shares=(0.7, 0.2, 0.1), repeats=(1.0, 2.0, 8.0)),
    Column("other", Kind.CATEGORICAL, levels=tuple("uvwx")),
    Column("flag", Kind.BINARY, levels=("n", "y")),
)


def plain_and_balanced():
    """A model of rows that training repeated, and the same one where nobody knows."""
    plain = tuple(replace(column, repeats=()) for column in BALANCED)
    balanced = model(BALANCED, latent=1, heavy_tails=False).double()
    unknowing = model(plain, latent=1, heavy_tails=False).double()
    unknowing.load_state_dict(balanced.state_dict())
    return unknowing, balanced


def classes_by_quadrature(vae, given):
    """p(class|given) and E[v|class, given] of the table, from p(x, z) / repeats on a grid over z."""
    z = torch.linspace(-8, 8, 4001).double()[:, None]
    x = given.double().repeat(3, 1, 1)
    x[:, 0, 1] = torch.arange(3)
    p = vae.decoder(z)
    repeats = torch.tensor(BALANCED[1].repeats).double()
    weight = torch.exp(p.log_prob(x) + td.Normal(0.0, 1.0).log_prob(z[:, 0])) / repeats[:, None]
    return weight.sum(1) / weight.sum(), (weight * p.mean[:, 0]).sum(1) / weight.sum(1)


@pytest.mark.verifies(lb.heads.Columns, against="quadrature")
def test_what_training_repeated_is_generated_as_often_as_it_occurs():
    unknowing, balanced = plain_and_balanced()
    nothing = torch.full((1, 4), NAN)
    share, v = classes_by_quadrature(balanced, nothing)
    x = lb.sample(balanced, 20_000, draw=True)
    assert x.shape == (20_000, 4)
    found = torch.bincount(x[:, 1].long(), minlength=3) / len(x)
    torch.testing.assert_close(found.double(), share, atol=0.015, rtol=0)
    for label in range(3):
        assert x[x[:, 1] == label, 0].mean() == pytest.approx(v[label].item(), abs=0.1)
    seen = lb.sample(unknowing, 20_000, draw=True)[:, 1]
    assert (seen == 2).double().mean() > 2 * share[2]


@pytest.mark.verifies(lb.heads.Columns, against="quadrature")
def test_what_training_repeated_is_filled_in_as_often_as_it_occurs():
    unknowing, balanced = plain_and_balanced()
    row = torch.tensor([[0.5, NAN, 2.0, NAN]]).double()
    share, _ = classes_by_quadrature(balanced, row)
    drawn = lb.impute(balanced, row, 20_000, draws=20_000).draws[:, 0]
    found = torch.bincount(drawn[:, 1].long(), minlength=3) / len(drawn)
    torch.testing.assert_close(found.double(), share, atol=0.015, rtol=0)
    made, _ = sample_given(balanced, row[0], 5_000)
    found = torch.bincount(made[:, 1].long(), minlength=3) / len(made)
    torch.testing.assert_close(found.double(), share, atol=0.03, rtol=0)
    # Given the class, it does not matter how often its rows were seen.
    told = torch.tensor([[NAN, 2.0, 2.0, NAN]]).double()
    filled = [lb.impute(vae, told, 500).x for vae in (unknowing, balanced)]
    torch.testing.assert_close(*filled)


def test_the_recipe_learns_what_binds_columns_and_fills_it_in():
    draws = generator(0)
    z = torch.randn(600, generator=draws)
    label = (z + 0.1 * torch.randn(600, generator=draws) > 0).float()
    x = torch.stack([z, -z + 0.1 * torch.randn(600, generator=draws), label], 1)
    columns = (Column("a", Kind.REAL), Column("b", Kind.REAL), Column("c", Kind.BINARY, levels=("n", "y")))
    data = table_of(x.masked_fill(torch.rand(x.shape, generator=draws) < 0.2, NAN), columns)
    run = lb.recipes.tabular(data, latent_dim=2, width=32, epochs=60, lr=5e-3)
    torch.manual_seed(0)
    lb.fit(run.vae, run.data, run.objective, run.training, device=torch.device("cpu"))
    test = x[300:].clone()
    test[:, 1] = test[:, 2] = NAN
    filled = lb.impute(run.vae, test, 300).x
    assert (filled[:, 1] - x[300:, 1]).square().mean().sqrt() < 0.3
    assert (filled[:, 2] == x[300:, 2]).float().mean() > 0.9
    result = lb.evaluate(run.vae, data.test, num_samples=20, limit=50, gap=0)
    assert result.is_likelihood
    assert result.bits_per_dim is None
    assert any("observed cells" in note for note in result.notes)


def test_a_small_table_makes_small_batches_and_a_large_one_few_epochs():
    columns = (Column("a", Kind.REAL),)
    small = lb.recipes.tabular(table_of(torch.randn(20, 1), columns))
    assert (small.training.batch_size, small.training.epochs) == (10, 4000)
    large = lb.recipes.tabular(table_of(torch.randn(200_000, 1), columns), num_samples=1)
    assert (large.training.batch_size, large.training.epochs) == (64, 10)


def test_constant_columns_do_not_blow_up():
    columns = (Column("a", Kind.REAL, 3.0, 1.0), Column("b", Kind.CATEGORICAL, levels=("x",), shares=(1.0,)))
    run = lb.recipes.tabular(table_of(torch.zeros(40, 2), columns), epochs=300, width=8, num_samples=2)
    history = lb.fit(run.vae, run.data, run.objective, run.training, device=torch.device("cpu"))
    assert math.isfinite(history[-1]["loss"])
    # No more than the least scale allows.
    assert history[-1]["elbo"] <= -math.log(0.01) + 1
    assert np.isfinite(lb.sample(run.vae, 10, draw=True).numpy()).all()
