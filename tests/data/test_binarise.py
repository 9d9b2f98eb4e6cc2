"""Binarised data: which draws are fresh, which are fixed, and that each has the mean it should."""

import hashlib
import math

import pytest
import torch

from lowerbound.data import ArraySource, Binarise, Data, Support, batches, open_data
from lowerbound.data.binarise import DynamicallyBinarised, Thresholded, fixed_draw
from lowerbound.errors import UsageError

CPU = torch.device("cpu")
DRAWN = [Binarise.DYNAMIC, Binarise.FIXED]
BINARISING = [Binarise.THRESHOLD, *DRAWN]


def constant(grey, count, width):
    """A source all of whose values are `grey`."""
    return ArraySource(torch.full((count, width), float(grey)), torch.arange(count), support=Support.UNIT_INTERVAL)


def ramp(count):
    """A source of 8-bit examples, each holding all 256 grey values."""
    return ArraySource(torch.arange(256, dtype=torch.uint8).expand(count, 256).clone(), torch.arange(count))


def everything(source):
    return source.examples(torch.arange(len(source))).x


def is_binary(x):
    return bool(((x == 0) | (x == 1)).all())


def agreement(a, b):
    """How far the agreement of two fields of bits is from that of independent fair coins, in standard deviations."""
    count = a.numel()
    return (float((a == b).sum()) - count / 2) / math.sqrt(count / 4)


# threshold


def test_the_threshold_is_at_one_half():
    grey = ArraySource(torch.tensor([[0.0, 0.4999, 0.5, 0.5001, 1.0]]), support=Support.UNIT_INTERVAL)
    assert everything(Thresholded(grey)).tolist() == [[0, 0, 1, 1, 1]]


def test_of_eight_bits_127_is_black_and_128_is_white():
    x = everything(Binarise.THRESHOLD.for_training(ramp(1)))[0]
    assert x[127].item() == 0
    assert x[128].item() == 1
    assert x.sum().item() == 128


# what all have in common


@pytest.mark.parametrize("how", BINARISING)
def test_a_binarised_source_is_binary_and_says_so_and_keeps_its_labels(how):
    source = ramp(5)
    binary = how.for_training(source, seed=3)
    assert binary.support is Support.BINARY
    assert binary.event_shape == source.event_shape
    assert len(binary) == 5
    assert torch.equal(binary.labels, source.labels)
    (batch,) = batches(binary, torch.tensor([4, 2, 0]), 8, CPU)
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (3, 256)
    assert is_binary(batch.x)
    assert batch.label.tolist() == [4, 2, 0]


@pytest.mark.parametrize("how", BINARISING)
def test_what_travels_to_the_device_is_still_one_byte_a_value(how):
    assert how.for_training(ramp(5)).gather(torch.arange(3)).x.dtype == torch.uint8


@pytest.mark.parametrize("how", BINARISING)
def test_black_stays_black_and_white_stays_white(how):
    bits = torch.randint(0, 2, (50, 40), generator=torch.Generator().manual_seed(0)).float()
    source = ArraySource(bits, support=Support.BINARY)
    for _ in range(3):
        assert torch.equal(everything(how.for_training(source)), bits)


@pytest.mark.parametrize("how", BINARISING)
@pytest.mark.parametrize("purpose", ["for_training", "for_judging"])
def test_real_values_cannot_be_binarised(how, purpose):
    source = ArraySource(torch.randn(4, 3), support=Support.REAL)
    with pytest.raises(UsageError, match="support real") as caught:
        getattr(how, purpose)(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("support", Support)
@pytest.mark.parametrize("purpose", ["for_training", "for_judging"])
def test_to_binarise_by_none_changes_nothing_whatever_the_support(support, purpose):
    source = ArraySource(torch.ones(4, 3), support=support)
    assert getattr(Binarise.NONE, purpose)(source) is source


@pytest.mark.parametrize("how", BINARISING)
def test_the_fingerprint_says_how_and_of_what(how):
    source = ramp(3)
    other = ArraySource(source.values.flip(1), source.labels)
    prints = [source.fingerprint]
    prints += [each.for_training(source, seed=0).fingerprint for each in BINARISING]
    prints += [how.for_training(other, seed=0).fingerprint]
    assert len(set(prints)) == 5
    assert how.for_training(source, seed=0).fingerprint == how.for_training(ramp(3), seed=0).fingerprint


@pytest.mark.parametrize("how", [Binarise.THRESHOLD, Binarise.DYNAMIC])
def test_moving_a_binarised_source_keeps_how_it_is_binarised(how):
    binary = how.for_training(ramp(3))
    moved = binary.to(CPU)
    assert type(moved) is type(binary)
    assert moved.fingerprint == binary.fingerprint
    assert is_binary(everything(moved))


# dynamic


def test_a_dynamic_draw_is_afresh_each_time():
    source = DynamicallyBinarised(constant(0.5, 50, 40))
    torch.manual_seed(0)
    looks = [everything(source) for _ in range(4)]
    for i, a in enumerate(looks):
        for b in looks[:i]:
            assert abs(agreement(a, b)) < 5


def test_a_dynamic_draw_follows_the_global_generator():
    source = DynamicallyBinarised(constant(0.5, 5, 40))
    looks = []
    for _ in range(2):
        torch.manual_seed(7)
        looks.append(everything(source))
    assert torch.equal(*looks)


def test_the_mean_of_dynamic_draws_is_the_grey_value():
    torch.manual_seed(0)
    draws = 20_000
    index = torch.zeros(draws, dtype=torch.int64)
    mean = DynamicallyBinarised(ramp(1)).examples(index).x.mean(0)
    grey = torch.arange(256) / 255
    assert mean[0].item() == 0
    assert mean[255].item() == 1
    # Each mean is that of a binomial; of 254 of them, one in 6,900 such sets has a deviation over five.
    deviation = (mean - grey)[1:255] / (grey * (1 - grey) / draws).sqrt()[1:255]
    assert deviation.abs().max() < 5
    # And together they are no wider and no narrower than they should be: chi-squared of 254.
    assert abs(float(deviation.square().sum()) - 254) < 5 * math.sqrt(2 * 254)


@pytest.mark.parametrize("how", DRAWN)
def test_the_number_of_white_pixels_of_the_real_digits_is_as_expected(digits, how):
    torch.manual_seed(0)
    grey = everything(digits.valid)
    white = float(everything(how.for_training(digits.valid, seed=0)).double().sum())
    p = grey.double()
    assert abs(white - float(p.sum())) < 5 * math.sqrt(float((p * (1 - p)).sum()))


# fixed


def test_a_fixed_draw_is_the_same_at_every_look_and_however_it_is_read():
    source = fixed_draw(constant(0.5, 2100, 7), seed=1)
    whole = everything(source)
    assert torch.equal(everything(source), whole)
    order = torch.randperm(2100, generator=torch.Generator().manual_seed(0))
    for size in (1, 64, 2100):
        for batch in batches(source, order[:300], size, CPU):
            assert torch.equal(batch.x, whole[batch.index])


@pytest.mark.parametrize("as_bytes", [True, False], ids=["uint8", "float"])
def test_a_fixed_draw_depends_on_nothing_but_the_grey_values_and_the_seed(as_bytes):
    grey = torch.randint(0, 256, (1500, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = grey if as_bytes else grey.float() * (1 / 255)
    source = ArraySource(values, support=Support.EIGHT_BIT)
    torch.manual_seed(1)
    first = fixed_draw(source, seed=5)
    torch.manual_seed(2)
    torch.rand(3)
    assert fixed_draw(source, seed=5).fingerprint == first.fingerprint
    assert torch.equal(everything(first), everything(fixed_draw(ArraySource(grey), seed=5)))


def test_a_fixed_draw_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    untouched = torch.rand(4)
    torch.manual_seed(0)
    fixed_draw(constant(0.5, 10, 3), seed=0)
    assert torch.equal(torch.rand(4), untouched)


def test_the_first_thousands_of_a_fixed_draw_do_not_depend_on_what_follows():
    source = constant(0.5, 2500, 6)
    whole = everything(fixed_draw(source, seed=0))
    assert torch.equal(everything(fixed_draw(source.slice(0, 2000), seed=0)), whole[:2000])


def test_each_seed_and_each_thousand_has_a_draw_of_its_own():
    source = constant(0.5, 3000, 20)
    fields = [part for seed in range(4) for part in everything(fixed_draw(source, seed)).split(1000)]
    for i, a in enumerate(fields):
        for b in fields[:i]:
            assert abs(agreement(a, b)) < 5


def test_the_seed_of_a_fixed_draw_is_in_its_fingerprint():
    source = constant(0.5, 20, 20)
    assert len({fixed_draw(source, seed).fingerprint for seed in range(50)}) == 50


def test_the_mean_of_a_fixed_draw_is_the_grey_value():
    draws = 20_000
    mean = everything(fixed_draw(ramp(draws), seed=0)).mean(0)
    grey = torch.arange(256) / 255
    assert mean[0].item() == 0
    assert mean[255].item() == 1
    deviation = (mean - grey)[1:255] / (grey * (1 - grey) / draws).sqrt()[1:255]
    assert deviation.abs().max() < 5
    assert abs(float(deviation.square().sum()) - 254) < 5 * math.sqrt(2 * 254)


def test_a_fixed_draw_of_nothing_is_nothing():
    assert fixed_draw(constant(0.5, 0, 3), seed=0).values.shape == (0, 3)


def test_the_fixed_draw_of_the_real_digits_is_the_one_it_always_was():
    drawn = Binarise.FIXED.for_judging(open_data("mnist-5k").train, seed=0)
    found = hashlib.sha256(drawn.values.numpy().tobytes()).hexdigest()
    assert found == "8485931888f9d36a7004107774c9c2974cbfff3530e5f0fc26a5c2809146ba4d"


# the splits of a data set


def split_in_three(grey=0.5, count=1200, width=30):
    return Data("toys", *(constant(grey, count, width) for _ in range(3)))


@pytest.mark.parametrize("how", DRAWN)
def test_what_is_judged_does_not_change_between_two_looks(how):
    data = split_in_three().binarised(how, seed=0)
    for split in (data.valid, data.test):
        assert isinstance(split, ArraySource)
        assert torch.equal(everything(split), everything(split))
    again = split_in_three().binarised(how, seed=0)
    assert (again.valid.fingerprint, again.test.fingerprint) == (data.valid.fingerprint, data.test.fingerprint)


def test_a_dynamic_training_set_is_drawn_afresh_beside_fixed_judges():
    data = split_in_three().binarised(Binarise.DYNAMIC)
    assert isinstance(data.train, DynamicallyBinarised)
    assert not torch.equal(everything(data.train), everything(data.train))
    fixed = split_in_three().binarised(Binarise.FIXED)
    assert fixed.valid.fingerprint == data.valid.fingerprint
    assert fixed.test.fingerprint == data.test.fingerprint


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_draws_of_the_three_splits_are_independent(seed):
    data = split_in_three().binarised(Binarise.FIXED, seed)
    fields = [everything(data.split(name)) for name in ("train", "valid", "test")]
    assert abs(agreement(fields[0], fields[1])) < 5
    assert abs(agreement(fields[0], fields[2])) < 5
    assert abs(agreement(fields[1], fields[2])) < 5


def test_the_seed_of_the_data_changes_every_fixed_draw():
    a, b = (split_in_three().binarised(Binarise.FIXED, seed) for seed in (0, 1))
    for name in ("train", "valid", "test"):
        assert a.split(name).fingerprint != b.split(name).fingerprint


def test_a_threshold_needs_no_draw():
    data = split_in_three(0.6).binarised(Binarise.THRESHOLD)
    for name in ("train", "valid", "test"):
        assert everything(data.split(name)).min().item() == 1


def test_data_binarised_by_none_are_the_data():
    data = split_in_three()
    same = data.binarised(Binarise.NONE)
    assert same.train is data.train
    assert same.valid is data.valid
    assert same.test is data.test


@pytest.mark.parametrize("how", BINARISING)
def test_data_without_validation_are_binarised_too(how):
    data = Data("toys", constant(0.5, 9, 4), None, constant(0.5, 9, 4)).binarised(how)
    assert data.valid is None
    assert data.support is Support.BINARY
    assert data.event_shape == (4,)


def test_binarised_splits_keep_their_labels(digits):
    data = digits.binarised(Binarise.DYNAMIC)
    for name in ("train", "valid", "test"):
        assert torch.equal(data.split(name).labels, digits.split(name).labels)
