"""Examples that stay in their file: the same as in memory, bit for bit, in memory that does not grow."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import assert_refused, call, succeed

import lowerbound as lb
from lowerbound.checkpoint import RunFolder
from lowerbound.data import ArraySource, Binarise, Rows, StoredSource, Support, cache, open_data, rows_of, stored
from lowerbound.data.binarise import fixed_draw
from lowerbound.data.dequantise import fixed_noise
from lowerbound.data.source import Subset
from lowerbound.errors import DataError, ResourceError, UsageError
from lowerbound.experiment import Experiment, prepare
from lowerbound.recipes import RECIPES
from lowerbound.recipes.base import BinariseName


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LOWERBOUND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def nothing_held(monkeypatch):
    """Has every `.npy` file read from the disk, however small."""
    monkeypatch.setattr(stored, "HELD_BYTES", -1)


def saved(path, array):
    np.save(path, array)
    return str(path)


def pictures(count=60, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, side, side), dtype=np.uint8)


def both(path, array, monkeypatch):
    """The same file, held in memory and read from the disk."""
    held = open_data(saved(path, array))
    monkeypatch.setattr(stored, "HELD_BYTES", -1)
    return held, open_data(str(path))


KINDS = {
    "8-bit pictures": pictures(),
    "grey without a channel axis": pictures()[:, 0],
    "colour": np.random.default_rng(1).integers(0, 256, (40, 3, 4, 6), dtype=np.uint8),
    "zeros and ones as bytes": np.random.default_rng(2).integers(0, 2, (50, 7), dtype=np.uint8),
    "truth values": np.random.default_rng(2).integers(0, 2, (50, 7)).astype(bool),
    "counts": np.random.default_rng(3).integers(0, 900, (50, 5)),
    "counts in 16 bits, the other way round": np.random.default_rng(3).integers(0, 900, (50, 5)).astype(">u2"),
    "half precision": np.random.default_rng(4).normal(size=(50, 5)).astype(np.float16),
    "single precision": np.random.default_rng(4).normal(size=(50, 5)).astype(np.float32),
    "double precision": np.random.default_rng(4).normal(size=(50, 5)),
    "grey values": np.random.default_rng(5).random((50, 4, 4)),
}


@pytest.mark.parametrize("array", KINDS.values(), ids=KINDS)
def test_a_file_means_the_same_from_the_disk_as_from_memory(array, tmp_path, monkeypatch):
    held, read = both(tmp_path / "x.npy", array, monkeypatch)
    for name in ("train", "valid", "test"):
        one, other = held.split(name), read.split(name)
        assert isinstance(one, ArraySource)
        assert isinstance(other, Subset)
        assert isinstance(other.source, StoredSource)
        assert (other.support, other.event_shape, len(other)) == (one.support, one.event_shape, len(one))
        index = torch.randperm(len(one))
        assert torch.equal(other.gather(index).x, one.gather(index).x)
        assert torch.equal(other.examples(index).x, one.examples(index).x)


@pytest.mark.parametrize(
    "index",
    [[], [3], [0, 1, 2, 3], [3, 2, 1, 0], [5, 5, 5], [7, 8, 9, 2, 3, 29, 0], list(range(30))],
    ids=str,
)
def test_rows_are_those_that_were_asked_for_in_their_order(index, tmp_path):
    array = np.random.default_rng(0).normal(size=(30, 2, 3))
    found = rows_of(Path(saved(tmp_path / "x.npy", array))).read(np.array(index, dtype=np.int64))
    assert np.array_equal(found, array[np.array(index, dtype=np.int64)])


def test_rows_are_the_same_where_the_system_must_seek_first(tmp_path, monkeypatch):
    path = Path(saved(tmp_path / "x.npy", KINDS["colour"]))
    monkeypatch.setattr(stored, "_read_at", stored._seek_and_read)
    assert np.array_equal(rows_of(path).read(np.array([9, 3, 4])), KINDS["colour"][[9, 3, 4]])


def test_rows_are_the_same_where_reads_stop_early(tmp_path, monkeypatch):
    path = Path(saved(tmp_path / "x.npy", KINDS["colour"]))
    monkeypatch.setattr(stored, "_read_at", lambda file, length, place: os.pread(file, min(length, 5), place))
    assert np.array_equal(rows_of(path).read(np.array([9, 3, 4])), KINDS["colour"][[9, 3, 4]])


@pytest.mark.parametrize("index", [[-1], [30], [0, 30, 1]], ids=str)
def test_there_are_no_rows_beyond_the_ends(index, tmp_path):
    with pytest.raises(IndexError, match="0 to 29"):
        rows_of(Path(saved(tmp_path / "x.npy", np.zeros((30, 2))))).read(np.array(index))


def test_labels_go_with_their_examples(tmp_path):
    rows = rows_of(Path(saved(tmp_path / "x.npy", pictures(20))))
    source = StoredSource(rows, torch.arange(20))
    assert source.examples(torch.tensor([7, 3])).label.tolist() == [7, 3]
    assert source.take(torch.tensor([7, 3])).labels.tolist() == [7, 3]
    with pytest.raises(DataError, match="20 examples but 3 labels"):
        StoredSource(rows, torch.arange(3))


def test_a_file_is_closed_with_its_source(tmp_path):
    rows = rows_of(Path(saved(tmp_path / "x.npy", pictures())))
    descriptor = rows._descriptor
    os.fstat(descriptor)
    del rows
    gc.collect()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)


# training


def trained(data, **settings):
    run = prepare(RECIPES["conv"], data, {"epochs": 2, "channels": 4, "features": 16, **settings})
    history = lb.fit(run.vae, run.data, run.objective, run.training, device=torch.device("cpu"))
    return run.vae.state_dict(), history


@pytest.mark.parametrize("how", ["none", "dynamic", "fixed", "threshold"])
def test_training_is_the_same_bit_for_bit(how, tmp_path, monkeypatch):
    held, read = both(tmp_path / "x.npy", pictures(300), monkeypatch)
    settings = {"binarise": BinariseName(how), "batch_size": 32}
    (weights, history), (others, again) = trained(held, **settings), trained(read, **settings)
    assert history == again
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_training_on_all_examples_is_the_same_bit_for_bit(tmp_path, monkeypatch):
    held, read = both(tmp_path / "x.npy", pictures(100), monkeypatch)
    assert len(read.joined().train) == len(held.joined().train) == 90
    settings = {"epochs": 1, "width": 8, "batch_size": 32}
    runs = [prepare(RECIPES["tutorial"], data, settings) for data in (held, read)]
    histories = [lb.fit(run.vae, run.data, run.objective, run.training) for run in runs]
    assert histories[0] == histories[1]


def test_what_belongs_to_two_files_is_not_joined(tmp_path, nothing_held):
    first, second = (open_data(saved(tmp_path / name, pictures())) for name in ("a.npy", "b.npy"))
    with pytest.raises(UsageError, match="no parts of one source"):
        first.train.joined(second.valid)


def test_a_training_that_was_stopped_inside_an_epoch_goes_on_exactly(tmp_path, nothing_held):
    data = open_data(saved(tmp_path / "x.npy", pictures(200)))

    def steps(folder, stop_after=None):
        run = prepare(RECIPES["conv"], data, {"epochs": 2, "channels": 4, "batch_size": 32})
        experiment = Experiment(run, RunFolder(folder), device=torch.device("cpu"))
        experiment.begin() if not folder.exists() else experiment.resume()
        for update in experiment.updates():
            experiment.stop = update.step.step == stop_after
        return experiment.state.vae.state_dict()

    whole = steps(tmp_path / "whole")
    steps(tmp_path / "parts", stop_after=3)
    again = steps(tmp_path / "parts")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_commands_take_such_a_file(tmp_path, nothing_held):
    path, run = saved(tmp_path / "x.npy", pictures(200)), tmp_path / "run"
    options = ("--epochs", 1, "--channels", 4, "--batch-size", 32, "--device", "cpu")
    succeed(call("train", "conv", "--data", path, "--out", run, *options))
    assert succeed(call("evaluate", run, "--samples", 5, "--gap", 0, "--json")).json["n"] == 20
    succeed(call("encode", run, "--split", "train", "--out", tmp_path / "codes.npz"))
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["loc"].shape == (160, 32)
    succeed(call("encode", run, "--split", "train", "--out", tmp_path / "codes.csv"))
    assert len((tmp_path / "codes.csv").read_text().splitlines()) == 161
    succeed(call("reconstruct", run, "--out", tmp_path / "r.png"))


# fixed draws


def test_large_fixed_draws_lie_in_files_without_a_name(tmp_path, monkeypatch):
    source = ArraySource(torch.from_numpy(pictures(2300, 4)))
    expected = fixed_draw(source, 3), fixed_noise(source, 3)
    monkeypatch.setattr(stored, "HELD_BYTES", 1000)
    found = fixed_draw(source, 3), fixed_noise(source, 3)
    index = torch.randperm(2300)
    for one, other in zip(expected, found, strict=True):
        assert isinstance(other, StoredSource)
        assert torch.equal(one.examples(index).x, other.examples(index).x)
        assert (one.support, one.log_correction) == (other.support, other.log_correction)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".npy", ".part")]


def test_a_fixed_draw_has_the_same_fingerprint_at_every_look_and_another_seed_another(monkeypatch):
    monkeypatch.setattr(stored, "HELD_BYTES", 1000)
    source = ArraySource(torch.from_numpy(pictures(100)))
    prints = [fixed_draw(source, seed).fingerprint for seed in (3, 3, 4)]
    assert prints[0] == prints[1] != prints[2]


# fingerprints, and what is remembered


def test_the_fingerprint_follows_the_values(tmp_path, nothing_held):
    array = pictures()
    path = saved(tmp_path / "x.npy", array)
    first = open_data(path).test.fingerprint
    assert open_data(path).test.fingerprint == first
    array[-1, 0, 0, 0] ^= 1
    saved(tmp_path / "y.npy", array)
    assert open_data(str(tmp_path / "y.npy")).test.fingerprint != first


def test_a_file_is_looked_through_once_while_it_does_not_change(tmp_path, nothing_held, monkeypatch):
    path = saved(tmp_path / "x.npy", pictures())
    looked = []
    scan = stored._scan
    monkeypatch.setattr(stored, "_scan", lambda rows, name, floats: looked.append(name) or scan(rows, name, floats))
    for _ in range(3):
        open_data(path).test.fingerprint  # noqa: B018
    assert len(looked) == 1
    saved(path, pictures(seed=1))
    os.utime(path, ns=(1, 1))
    open_data(path)
    assert len(looked) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sha256": 1}', '{"sha256": "", "support": "no such"}'])
def test_a_damaged_note_is_none(damage, tmp_path, nothing_held):
    path = saved(tmp_path / "x.npy", pictures())
    first = open_data(path).test.fingerprint
    (note,) = (cache.cache_dir() / "facts").iterdir()
    note.write_text(damage)
    assert open_data(path).test.fingerprint == first


def test_where_nothing_can_be_remembered_all_works(tmp_path, nothing_held, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWERBOUND_CACHE", str(tmp_path / "file"))
    assert open_data(saved(tmp_path / "x.npy", pictures())).support is Support.EIGHT_BIT


# what is refused


def refusal(path):
    with pytest.raises(DataError) as caught:
        open_data(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def bad_places():
    array = np.zeros((2_000_000, 3), np.float32)  # several chunks
    array[1_999_999, 2], array[7, 0], array[1_500_000, 1] = np.nan, np.inf, -np.inf
    return array


def test_values_that_are_not_finite_are_named_by_their_places(tmp_path, nothing_held):
    message = refusal(saved(tmp_path / "x.npy", bad_places()))
    assert "example 7, position (0,): inf" in message
    late = bad_places()
    late[7, 0] = late[1_500_000, 1] = 0
    assert "example 1999999, position (2,): nan" in refusal(saved(tmp_path / "x.npy", late))


REFUSED = {
    "negative whole numbers": (np.full((9, 3), -1), "counts"),
    "whole numbers too large": (np.full((9, 3), 1 << 30), "counts"),
    "pictures or counts": (np.full((9, 3, 3), 7), "uint8"),
    "text": (np.array([["a", "b"]] * 9), "type <U1"),
    "complex": (np.zeros((9, 2), complex), "complex128"),
    "one axis": (np.zeros(9), "shape"),
    "too few": (np.zeros((2, 3)), "at least 3"),
    "no values": (np.zeros((9, 0)), "shape"),
    "columns": (np.asfortranarray(np.zeros((9, 3))), "ascontiguousarray"),
    "fields": (np.zeros(9, dtype=[("a", "f4")]), "numbers alone"),
}


@pytest.mark.parametrize(("array", "said"), REFUSED.values(), ids=REFUSED)
def test_arrays_without_a_meaning_are_refused(array, said, tmp_path, nothing_held):
    assert said in refusal(saved(tmp_path / "x.npy", array))


def test_python_objects_are_refused_and_not_run(tmp_path, nothing_held):
    np.save(tmp_path / "x.npy", np.array([{}, {}, {}], dtype=object), allow_pickle=True)
    assert "object" in refusal(tmp_path / "x.npy")


@pytest.mark.parametrize("keep", [0, 3, 60, 127, 128, 1000])
def test_a_file_that_was_cut_off_is_refused(keep, tmp_path, nothing_held):
    path = Path(saved(tmp_path / "x.npy", pictures()))
    path.write_bytes(path.read_bytes()[:keep])
    assert "save it again" in refusal(path).lower()


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error_in_words(tmp_path, nothing_held):
    path = tmp_path / "x.npy"
    data = open_data(saved(path, pictures()))
    with path.open("r+b") as file:
        file.truncate(500)
    with pytest.raises(DataError, match="cut short while it was being read"):
        data.train.examples(torch.arange(10))


def test_a_file_that_is_replaced_while_it_is_read_stays_the_old_one(tmp_path, nothing_held):
    path = tmp_path / "x.npy"
    data = open_data(saved(path, pictures()))
    before = data.train.examples(torch.arange(10)).x
    saved(tmp_path / "y.npy", pictures(seed=5))
    os.replace(tmp_path / "y.npy", path)
    assert torch.equal(data.train.examples(torch.arange(10)).x, before)


def test_archives_that_fit_no_memory_are_refused_with_the_way_out(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", x=pictures())
    monkeypatch.setattr(os, "sysconf", lambda name: 60)
    assert ".npy" in refusal(tmp_path / "x.npz")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    source = ArraySource(torch.from_numpy(pictures(2000)))
    monkeypatch.setattr(stored, "HELD_BYTES", -1)
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    real = cache._write_rows

    def onto_a_full_disk(file, *rest):
        with open("/dev/full", "wb") as full:
            real(full, *rest)

    monkeypatch.setattr(cache, "_write_rows", onto_a_full_disk)
    with pytest.raises(ResourceError, match="No space left"):
        fixed_noise(source, 0)
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(ResourceError, match="LOWERBOUND_CACHE"):
        cache.pack(tmp_path / "x.npy", (1 << 40, 1 << 10), np.dtype(np.uint8), iter(()))
    assert not list(tmp_path.glob("x*"))


def test_what_killed_processes_left_goes_after_a_day(tmp_path):
    old, new = tmp_path / "a.npy.x.part", tmp_path / "b.npy.y.part"
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (1, 1))
    cache.pack(tmp_path / "x.npy", (1, 2), np.dtype(np.uint8), [np.zeros((1, 2), np.uint8)])
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["b.npy.y.part", "x.npy"]


@pytest.mark.parametrize("chunks", [[np.zeros((1, 2), np.uint8)], [np.zeros((2, 3), np.uint8)], [np.zeros((2, 2))]])
def test_rows_that_do_not_make_up_the_array_are_our_bug(chunks, tmp_path):
    with pytest.raises(ValueError, match="expected"):
        cache.pack(tmp_path / "x.npy", (2, 2), np.dtype(np.uint8), chunks)
    assert not list(tmp_path.glob("x*"))


# memory


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Ten times the examples, 12 and 120 MB, each looked at once in a random order and once from front to end."""
    code = """
import sys, resource, torch
from pathlib import Path
from lowerbound.data import epoch_order, rows_of, StoredSource
source = StoredSource(rows_of(Path(sys.argv[1])))
for order in (epoch_order(len(source), 0, 0), torch.arange(len(source))):
    for part in order.split(100):
        source.gather(part)
source.fingerprint
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    peaks = []
    for count in (300, 3_000):
        path = tmp_path / f"{count}.npy"
        cache.pack(
            path,
            (count, 200, 200),
            np.dtype(np.uint8),
            (np.full((100, 200, 200), i % 256, np.uint8) for i in range(count // 100)),
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        path.unlink()
    assert peaks[1] - peaks[0] < 30, peaks


def test_the_limit_is_on_the_command_line_as_well(tmp_path, nothing_held):
    """What is wrong with a large file is one paragraph and status 3."""
    path = saved(tmp_path / "x.npy", np.asfortranarray(np.zeros((9, 3))))
    assert_refused(call("train", "mlp", "--data", path, "--out", tmp_path / "run"), 3, "ascontiguousarray")


def test_rows_need_no_numpy_header(tmp_path):
    path = tmp_path / "raw.bin"
    path.write_bytes(b"headertexts" + bytes(range(12)))
    rows = Rows(path, (3, 4), np.dtype(np.uint8), offset=11)
    assert rows.read(np.array([2, 0])).tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert Binarise.NONE.for_training(source := StoredSource(rows)) is source
