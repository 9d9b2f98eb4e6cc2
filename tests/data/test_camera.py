"""Photographs of figures: the same each time, with factors that are the truth about them."""

import itertools
import math

import pytest
import torch

import lowerbound as lb
from lowerbound.data import camera, generator
from lowerbound.data.solids import Convex, Ellipsoid, box, cone, gable, views


@pytest.fixture(scope="module")
def data() -> lb.Data:
    return lb.open_data("camera")


def of(kind: str, angle: float, defocus: float = 0.0) -> torch.Tensor:
    return camera.render(torch.tensor([camera.KINDS.index(kind)]), torch.tensor([angle]), torch.tensor([defocus]))[0]


def test_the_source_has_its_size_and_its_factors(data):
    assert [len(part) for part in (data.train, data.valid, data.test)] == [20_000, 2_000, 2_000]
    assert data.event_shape == (1, 32, 32)
    assert data.support is lb.Support.EIGHT_BIT
    factors = data.train.factors
    assert factors.names == ("kind", "angle", "defocus")
    assert factors.discrete == (True, False, False)
    kind, angle, defocus = factors.values.T
    assert torch.equal(kind.long(), data.train.labels)
    assert kind.unique().tolist() == [0, 1, 2, 3, 4]
    assert -90 <= angle.min() < -89.9 < 89.9 < angle.max() <= 90
    assert 0 <= defocus.min() < 0.01 < 2.99 < defocus.max() <= 3
    together = torch.corrcoef(factors.values.T) - torch.eye(3)
    assert together.abs().max() < 4 / math.sqrt(len(kind))


def test_it_is_rendered_the_same_each_time(data):
    again, _ = camera.load_camera()
    assert torch.equal(again.values[:500], data.train.values[:500])
    assert again.slice(0, 20_000).fingerprint == data.train.fingerprint


def test_a_photograph_is_what_its_factors_render_to_but_for_the_noise(data):
    rows = torch.arange(500)
    batch = data.test.examples(rows)
    kind, angle, defocus = batch.factors.T
    assert torch.equal(batch.factors, data.test.factors.values[rows])
    error = batch.x - camera.render(kind.long(), angle, defocus)
    # Of a noise that is rounded to levels; at the ends of the range it is clipped, which hardly happens.
    expected = math.sqrt(camera.NOISE**2 + (1 / 255) ** 2 / 12)
    assert error.std() == pytest.approx(expected, rel=0.01)
    assert error.mean().abs() < 4 * expected / math.sqrt(error.numel())
    wrong = camera.render(kind.long(), -angle, defocus)
    assert (batch.x - wrong).std() > 2 * expected


@pytest.mark.parametrize("kind", camera.KINDS)
def test_no_two_angles_look_the_same(kind):
    angles = torch.arange(-90, 90.5, 5)
    x = camera.render(torch.full((len(angles),), camera.KINDS.index(kind)), angles, torch.zeros(len(angles)))
    apart = torch.cdist(x.flatten(1), x.flatten(1)) + 1e9 * torch.eye(len(angles))
    # Several times what noise alone would make of a likelihood ratio that is to be e^8.
    assert apart.min() > 4 * camera.NOISE
    assert (of(kind, 90) - of(kind, -90)).abs().max() > 0.3


def test_kinds_differ_at_every_angle():
    for angle in range(-90, 91, 10):
        for one, other in itertools.combinations(camera.KINDS, 2):
            assert (of(one, angle) - of(other, angle)).norm() > 1


def test_between_two_degrees_lies_their_mixture():
    mixed = 0.25 * of("mug", 10) + 0.75 * of("mug", 11)
    torch.testing.assert_close(of("mug", 10.75), mixed, atol=1e-5, rtol=0)
    assert (of("mug", 10) - of("mug", 11)).abs().max() > 1e-3


def test_defocus_takes_the_high_frequencies_away_and_leaves_the_light():
    sharp, *blurred = (of("chair", 30, s) for s in (0.0, 0.5, 1.0, 2.0, 3.0))
    # A window takes the jump from one edge of the picture to the other away, which no lens does.
    window = torch.hann_window(32)[:, None] * torch.hann_window(32)
    high = (torch.fft.fftfreq(32)[:, None] ** 2 + torch.fft.rfftfreq(32) ** 2).sqrt() > 0.2
    power = [torch.fft.rfft2((x - x.mean()) * window).abs().square() for x in (sharp, *blurred)]
    left = [float(p[:, high].sum()) for p in power]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.001 * left[0]
    assert power[-1][:, ~high].sum() > 0.3 * power[0][:, ~high].sum()
    for x in blurred:
        assert x.mean() == pytest.approx(float(sharp.mean()), rel=0.02)


def test_a_blur_of_nothing_changes_nothing_and_a_uniform_picture_stays_so():
    assert torch.equal(camera._blur(torch.tensor([0.0]))[0], torch.eye(32))
    matrix = camera._blur(torch.tensor([0.3, 3.0]))
    torch.testing.assert_close(matrix.sum(2), torch.ones(2, 32))


def test_the_likelihood_of_levels_sums_to_one():
    picture = torch.full((256, 1, 1, 1), 0.9)
    levels = torch.arange(256) / 255
    each = torch.stack([camera.log_likelihood(x.reshape(1, 1, 1), picture[:1])[0] for x in levels])
    assert each.logsumexp(0) == pytest.approx(0, abs=1e-9)
    near = torch.distributions.Normal(0.9, camera.NOISE)
    density = near.log_prob(levels[200].double()) - math.log(255)
    assert each[200] == pytest.approx(float(density), abs=1e-2)
    assert each.isfinite().all()


def test_the_posterior_of_the_renderer_finds_the_angle_and_is_wider_out_of_focus():
    grid = torch.arange(-90, 90.01, 0.5)
    spread = []
    for defocus in (0.0, 3.0):
        x = camera.expose(of("bird", 33, defocus)[None], generator(0))[0] / 255.0
        pictures = camera.render(torch.full((len(grid),), 2), grid, torch.full((len(grid),), defocus))
        weight = camera.log_likelihood(x, pictures).softmax(0)
        mean = (weight * grid).sum()
        spread.append(float((weight * (grid - mean) ** 2).sum().sqrt()))
        assert mean == pytest.approx(33, abs=4 * spread[-1] + 0.5)
    assert spread[1] > 2 * spread[0]


# solids


def rays(*directions: tuple[float, float, float], origin=(0.0, -5.0, 0.5)) -> tuple[torch.Tensor, torch.Tensor]:
    d = torch.nn.functional.normalize(torch.tensor(directions), dim=1)
    return torch.tensor(origin).expand_as(d), d


@pytest.mark.parametrize("solid", [box((-1, -1, 0), (1, 1, 1)), Ellipsoid((0, 0, 0.5), (2, 1, 1))])
def test_a_ray_meets_the_face_in_front_of_it_and_nothing_beside_it(solid):
    hit = solid.hit(*rays((0.0, 1.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)))
    assert hit.distance[0] == pytest.approx(4)
    torch.testing.assert_close(hit.normal[0], torch.tensor([0.0, -1.0, 0.0]))
    assert (hit.distance[1:] > 1e8).all()


@pytest.mark.parametrize(
    ("solid", "inside", "outside"),
    [
        (gable((-1, -1, 1), (1, 1, 2)), [(0, 0, 1.99), (0.95, 0, 1.01)], [(0.6, 0, 1.5), (0, 0, 0.9)]),
        (cone((0, 0), 1, 0, 2, sides=4, tip=2.0), [(0, 0, 1.99), (0.9, 0, 0.1)], [(0.6, 0, 1.0), (0, 0, -0.1)]),
        (cone((1, 0), 1, 0, 2, sides=40, tip=math.inf), [(1.99, 0, 1)], [(2.1, 0, 1), (1, 0, 2.1)]),
    ],
)
def test_a_solid_is_where_its_shape_says(solid: Convex, inside, outside):
    normals, offsets = torch.tensor(solid.normals), torch.tensor(solid.offsets)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(len(normals)))
    for points, expected in ((inside, True), (outside, False)):
        for point in points:
            assert bool((normals @ torch.tensor(point, dtype=torch.float32) <= offsets).all()) is expected


def test_a_figure_that_is_the_same_all_round_differs_by_its_light_alone():
    tower = (cone((0.0, 0.0), 0.5, 0.0, 1.0, sides=4, tip=math.inf),)
    front, turned = views(tower, torch.tensor([0.0, 90.0]), 16)
    silhouette = [(x - views((), torch.tensor([0.0]), 16)[0]).abs() > 0.02 for x in (front, turned)]
    assert (front - turned).abs().max() > 0.1
    inside = silhouette[0] & silhouette[1]
    assert inside.sum() > 15


# factors beside the examples


@pytest.mark.parametrize("how", ["threshold", "dynamic", "fixed"])
def test_factors_stay_with_their_examples_however_they_are_looked_at(data, how):
    seen = data.binarised(lb.Binarise(how)).test.take(torch.tensor([5, 3]))
    assert torch.equal(seen.factors.values, data.test.factors.values[[5, 3]])
    batch = seen.examples(torch.tensor([1]))
    assert torch.equal(batch.factors, data.test.factors.values[[3]])
    spread = data.dequantised().test
    assert torch.equal(spread.factors.values, data.test.factors.values)
    joined = data.joined().train.factors.values
    assert torch.equal(joined[20_000:], data.valid.factors.values)


def test_a_source_without_factors_says_so(tmp_path):
    source = lb.ArraySource(torch.zeros(3, 2, dtype=torch.uint8))
    assert source.factors is None
    assert source.examples(torch.arange(2)).factors is None
    assert source.take(torch.arange(2)).factors is None
