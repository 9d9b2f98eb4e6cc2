"""Sources gather by index in one call, decode on the way, and a walk through them can be taken up anywhere."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from lowerbound.data import ArraySource, Support, batches, check_support, derive_seed, epoch_order, generator, mean
from lowerbound.errors import DataError, UsageError

CPU = torch.device("cpu")

# A busy machine is no reason to fail.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def bytes_of(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def numbered(count, **kwargs):
    """A source whose example i is made of the number i, and has label 10 i."""
    values = torch.arange(count, dtype=torch.float32)[:, None].expand(count, 2).clone()
    return ArraySource(values, 10 * torch.arange(count), support=Support.REAL, **kwargs)


class CallCounter(TorchFunctionMode):
    """Counts the calls into torch that are made from Python."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


# gather and decode


def test_gather_takes_the_examples_in_the_order_asked_and_keeps_them_uint8():
    values = bytes_of(50, 1, 4, 3)
    source = ArraySource(values, torch.arange(50))
    index = torch.tensor([49, 0, 7, 7, 21])
    batch = source.gather(index)
    assert batch.x.dtype == torch.uint8
    assert batch.x.shape == (5, 1, 4, 3)
    assert torch.equal(batch.x, values[index])
    assert torch.equal(batch.label, index)


def test_gather_costs_as_many_calls_for_a_thousand_examples_as_for_one():
    source = ArraySource(bytes_of(1000, 3), torch.arange(1000))
    calls = []
    for count in (1, 1000):
        with CallCounter() as counter:
            source.gather(torch.arange(count))
        calls.append(counter.calls)
    assert 1 <= calls[0] == calls[1]


def test_what_is_gathered_can_be_written_to_without_changing_the_source():
    source = ArraySource(bytes_of(5, 3))
    before = source.values.clone()
    source.gather(torch.arange(5)).x.zero_()
    source.examples(torch.arange(5)).x.zero_()
    floating = numbered(5)
    floating.examples(torch.arange(5)).x.zero_()
    assert torch.equal(source.values, before)
    assert torch.equal(floating.values, numbered(5).values)


def test_eight_bits_decode_to_a_255th_of_themselves():
    source = ArraySource(torch.arange(256, dtype=torch.uint8)[:, None])
    x = source.decode(source.gather(torch.arange(256)).x)
    assert x.dtype == torch.float32
    assert x[0].item() == 0
    assert x[255].item() == 1
    torch.testing.assert_close(x[:, 0], torch.arange(256) / 255)


def test_a_scale_of_its_own_is_applied_to_bytes_only():
    sixteenths = ArraySource(torch.tensor([[0], [8], [16]], dtype=torch.uint8), scale=1 / 16)
    assert sixteenths.examples(torch.arange(3)).x.flatten().tolist() == [0, 0.5, 1]
    floats = ArraySource(torch.tensor([[0.25], [0.75]]), scale=1 / 16, support=Support.UNIT_INTERVAL)
    assert floats.examples(torch.arange(2)).x.flatten().tolist() == [0.25, 0.75]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floats_of_any_width_decode_to_float32(dtype):
    source = ArraySource(torch.tensor([[0.5], [1.0]], dtype=dtype), support=Support.UNIT_INTERVAL)
    x = source.examples(torch.tensor([1, 0])).x
    assert x.dtype == torch.float32
    assert x.flatten().tolist() == [1.0, 0.5]


def test_examples_say_which_they_are():
    index = torch.tensor([3, 1])
    batch = numbered(5).examples(index)
    assert torch.equal(batch.index, index)
    assert len(batch) == 2


def test_a_source_without_labels_has_none_anywhere():
    source = ArraySource(bytes_of(4, 2))
    assert source.labels is None
    assert source.gather(torch.arange(2)).label is None
    assert source.slice(0, 2).take(torch.tensor([0])).labels is None
    assert next(iter(batches(source, torch.arange(4), 2, CPU))).label is None


@pytest.mark.parametrize("count", [0, 4, 6])
def test_labels_must_be_as_many_as_examples(count):
    with pytest.raises(DataError, match=rf"the toys has 5 examples but {count} labels"):
        ArraySource(bytes_of(5, 2), torch.arange(count), name="the toys")


def test_the_event_shape_is_that_of_one_example():
    source = ArraySource(bytes_of(6, 3, 8, 9))
    assert source.event_shape == (3, 8, 9)
    assert len(source) == 6


def test_moving_a_source_keeps_its_values_labels_and_fingerprint():
    source = numbered(5)
    moved = source.to(CPU)
    assert torch.equal(moved.values, source.values)
    assert torch.equal(moved.labels, source.labels)
    assert moved.fingerprint == source.fingerprint


# values that cannot be


@pytest.mark.parametrize("example", [0, 3, 4095, 4096, 5001])
@pytest.mark.parametrize(
    ("support", "value"),
    [
        *((support, value) for support in Support for value in (math.inf, -math.inf)),
        *((support, math.nan) for support in Support if support is not Support.TABLE),
        *(
            (support, value)
            for support in Support
            if support not in (Support.REAL, Support.TABLE)
            for value in (-0.01, 1.01)
        ),
        (Support.BINARY, 0.5),
        (Support.EIGHT_BIT, 0.5),
        (Support.COUNT, 2.5),
        (Support.COUNT, -1.0),
    ],
)
def test_an_impossible_value_is_refused_naming_its_example_and_position(support, value, example):
    values = torch.ones(5002, 2, 3)
    values[example, 1, 2] = value
    with pytest.raises(DataError) as caught:
        ArraySource(values, support=support, name="the toys")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the toys ")
    assert f"example {example}, position (1, 2): {value:g}." in message
    assert message.count("position") == 1
    assert support.value in message


@pytest.mark.parametrize(
    ("support", "values"),
    [
        (Support.BINARY, [0.0, 1.0, -0.0]),
        (Support.EIGHT_BIT, [0.0, 128 / 255, 1.0]),
        (Support.UNIT_INTERVAL, [0.0, 1e-30, 0.3, 1.0]),
        (Support.COUNT, [0.0, 1.0, 7.0, 1e7]),
        (Support.REAL, [-1e30, 0.0, 1e30]),
        (Support.TABLE, [-1e30, math.nan, 1e30]),
    ],
)
def test_possible_values_up_to_the_edge_of_the_support_are_taken(support, values):
    assert len(ArraySource(torch.tensor(values)[:, None], support=support)) == len(values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_level_is_a_level_in_every_precision(dtype):
    levels = (torch.arange(256, dtype=torch.float64) / 255).to(dtype)
    assert len(ArraySource(levels[:, None], support=Support.EIGHT_BIT)) == 256


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_counts_of_any_type_stay_the_counts_they_are(dtype):
    source = ArraySource(torch.tensor([[0, 3], [200, 1]], dtype=dtype), support=Support.COUNT, scale=1)
    assert source.examples(torch.tensor([1, 0])).x.tolist() == [[200.0, 1.0], [0.0, 3.0]]


def test_counts_are_not_scaled_and_not_negative_whatever_their_type():
    with pytest.raises(DataError, match="scale=1"):
        ArraySource(torch.ones(3, 2, dtype=torch.uint8), support=Support.COUNT)
    with pytest.raises(DataError, match=r"example 1, position \(0,\): -2"):
        ArraySource(torch.tensor([[1], [-2]]), support=Support.COUNT)


def test_of_many_impossible_values_the_first_five_are_named():
    with pytest.raises(DataError) as caught:
        check_support(torch.full((100, 1), 2.0), Support.BINARY, "the toys")
    message = str(caught.value)
    assert [f"example {i}," in message for i in range(6)] == [True] * 5 + [False]


# slices, selections, joins


def test_a_slice_is_a_view_with_its_labels():
    source = numbered(10)
    part = source.slice(3, 6)
    assert len(part) == 3
    assert part.values[:, 0].tolist() == [3, 4, 5]
    assert part.labels.tolist() == [30, 40, 50]
    assert part.values.data_ptr() == source.values[3:].data_ptr()


def test_what_is_taken_comes_in_the_order_asked_with_its_labels():
    part = numbered(10).take(torch.tensor([9, 0, 4]))
    assert part.values[:, 0].tolist() == [9, 0, 4]
    assert part.labels.tolist() == [90, 0, 40]


def test_two_slices_joined_are_the_whole_again():
    source = numbered(10)
    whole = source.slice(0, 7).joined(source.slice(7, 10))
    assert torch.equal(whole.values, source.values)
    assert torch.equal(whole.labels, source.labels)
    assert whole.fingerprint == source.fingerprint


def test_a_join_has_labels_only_where_both_parts_have_them():
    labelled, bare = numbered(3), ArraySource(torch.zeros(2, 2), support=Support.REAL)
    assert labelled.joined(bare).labels is None
    assert bare.joined(labelled).labels is None
    assert len(labelled.joined(bare)) == 5


def test_parts_keep_the_support_scale_and_name_of_the_whole():
    source = ArraySource(bytes_of(6, 2), torch.arange(6), support=Support.UNIT_INTERVAL, scale=1 / 510, name="the toys")
    for part in (source.slice(1, 3), source.take(torch.tensor([2])), source.slice(0, 2).joined(source)):
        assert (part.support, part.scale, part.name) == (Support.UNIT_INTERVAL, 1 / 510, "the toys")
        assert part.event_shape == (2,)
        assert part.decode(part.values).max() <= 0.5


# fingerprints


def test_equal_values_have_the_same_fingerprint_however_they_are_held():
    values = bytes_of(5000, 3)
    source = ArraySource(values)
    strided = bytes_of(5000, 6)
    strided[:, ::2] = values
    same = [
        source,
        ArraySource(values.clone()),
        ArraySource(strided[:, ::2]),
        ArraySource(torch.cat([values, values])).slice(5000, 10_000),
        source.take(torch.arange(5000)),
    ]
    assert len({s.fingerprint for s in same}) == 1
    assert len(source.fingerprint) == 64


@pytest.mark.parametrize("example", [0, 4095, 4096, 4999])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_one_changed_value_changes_the_fingerprint(example, dtype):
    values = torch.zeros(5000, 3, dtype=dtype)
    changed = values.clone()
    changed[example, 1] = 1
    assert ArraySource(values).fingerprint != ArraySource(changed).fingerprint


@pytest.mark.parametrize(
    "other",
    [
        ArraySource(torch.zeros(3, 4, dtype=torch.uint8)),
        ArraySource(torch.zeros(4, 3, 1, dtype=torch.uint8)),
        ArraySource(torch.zeros(4, 3, dtype=torch.uint8), scale=1.0),
        ArraySource(torch.zeros(1, 3, dtype=torch.float32)),
    ],
    ids=["transposed", "one more axis", "scale", "type"],
)
def test_equal_bytes_that_mean_something_else_have_another_fingerprint(other):
    source = ArraySource(torch.zeros(4, 3, dtype=torch.uint8))
    assert source.values.numpy().tobytes() == other.values.numpy().tobytes()
    assert source.fingerprint != other.fingerprint


def test_a_swap_of_two_examples_changes_the_fingerprint():
    source = numbered(4)
    assert source.take(torch.tensor([1, 0, 2, 3])).fingerprint != source.fingerprint


def test_a_part_does_not_inherit_the_fingerprint_of_the_whole():
    source = numbered(10)
    known = source.fingerprint
    parts = [source.slice(0, 5), source.slice(5, 10), source.take(torch.tensor([1])), source.joined(source)]
    assert len({known, *(part.fingerprint for part in parts)}) == 5


# orders


@settings(patient, max_examples=60)
@given(st.integers(0, 2000), st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_an_epoch_order_is_a_permutation_and_a_pure_function_of_seed_and_epoch(count, seed, epoch):
    order = epoch_order(count, seed, epoch)
    torch.rand(3)  # what else is drawn in between has no say
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(count))
    assert torch.equal(order, epoch_order(count, seed, epoch))


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_an_epoch_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    untouched = torch.rand(4)
    torch.manual_seed(0)
    epoch_order(100, seed=1, epoch=2)
    assert torch.equal(torch.rand(4), untouched)


def test_over_many_epochs_every_example_comes_first_equally_often():
    firsts = torch.stack([epoch_order(10, seed=0, epoch=e)[0] for e in range(3000)])
    counts = torch.bincount(firsts, minlength=10)
    # Binomial(3000, 1/10) has standard deviation 16.4; five of them are exceeded once in two million.
    assert (counts - 300).abs().max() < 5 * math.sqrt(3000 * 0.1 * 0.9)


@settings(patient, max_examples=100)
@given(st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_a_derived_seed_is_one_that_torch_takes(parts):
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(*parts)
    generator(*parts)


def test_derived_seeds_do_not_collide_nearby_and_heed_the_order_and_number_of_parts():
    near = range(-10, 40)
    seeds = [derive_seed(a, b) for a in near for b in near]
    seeds += [derive_seed(a) for a in near]
    seeds += [derive_seed(a, b, 0) for a in near for b in near]
    assert len(set(seeds)) == len(seeds)


# batches


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(10, 3, [3, 3, 3, 1]), (9, 3, [3, 3, 3]), (2, 5, [2]), (1, 1, [1]), (0, 4, [])],
)
def test_batches_visit_each_example_once_in_order_and_the_last_may_be_short(count, size, lengths):
    source = numbered(count)
    order = epoch_order(count, seed=3, epoch=1)
    walked = list(batches(source, order, size, CPU))
    assert [len(batch) for batch in walked] == lengths
    assert torch.equal(torch.cat([order[:0], *(batch.index for batch in walked)]), order)
    for batch in walked:
        assert torch.equal(batch.x[:, 0], batch.index.float())
        assert torch.equal(batch.label, 10 * batch.index)


@settings(patient, max_examples=60)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 45))
def test_a_walk_taken_up_at_batch_k_goes_on_exactly(count, size, start):
    source = numbered(count)
    order = epoch_order(count, seed=0, epoch=0)
    whole = list(batches(source, order, size, CPU))
    rest = list(batches(source, order, size, CPU, start=start))
    assert len(rest) == max(0, math.ceil(count / size) - start)
    for expected, batch in zip(whole[start:], rest, strict=True):
        assert torch.equal(batch.x, expected.x)
        assert torch.equal(batch.label, expected.label)
        assert torch.equal(batch.index, expected.index)


def test_batches_are_decoded():
    source = ArraySource(torch.tensor([[255], [51]], dtype=torch.uint8))
    (batch,) = batches(source, torch.tensor([1, 0]), 8, CPU)
    assert batch.x.dtype == torch.float32
    torch.testing.assert_close(batch.x.flatten(), torch.tensor([0.2, 1.0]))


def test_an_order_may_leave_out_examples_and_repeat_them():
    walked = list(batches(numbered(5), torch.tensor([4, 4, 1]), 2, CPU))
    assert [batch.x[:, 0].tolist() for batch in walked] == [[4, 4], [1]]


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_nothing_is_refused(size):
    with pytest.raises(UsageError, match=f"batch_size={size}"):
        next(batches(numbered(3), torch.arange(3), size, CPU))


def test_labels_travel_with_the_real_digits(digits):
    order = epoch_order(len(digits.test), seed=0, epoch=0)
    for batch in batches(digits.test, order, 4096, CPU):
        assert torch.equal(batch.label, digits.test.labels[batch.index])
        torch.testing.assert_close(batch.x * 255, digits.test.values[batch.index].float())


# means


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2500])
def test_the_mean_is_over_every_example_where_they_are_few(count):
    source = ArraySource(bytes_of(count, 2, 3))
    torch.testing.assert_close(mean(source), source.values.double().mean(0).float() / 255)


class Counting(ArraySource):
    """A source that notes which examples it was asked for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []

    def gather(self, index):
        self.asked += index.tolist()
        return super().gather(index)


@pytest.mark.parametrize("count", [10, 11, 15, 19, 20, 21, 100, 999])
def test_the_mean_of_many_looks_at_no_more_than_asked_and_spreads_them_evenly(count):
    source = Counting(torch.arange(count, dtype=torch.float32)[:, None], support=Support.REAL)
    found = mean(source, at_most=10)
    assert 5 <= len(source.asked) <= 10
    steps = {b - a for a, b in itertools.pairwise(source.asked)}
    assert len(steps) == 1
    assert source.asked[0] < max(steps)
    assert source.asked[-1] >= count - max(steps)
    torch.testing.assert_close(found, torch.tensor([sum(source.asked) / len(source.asked)]))
