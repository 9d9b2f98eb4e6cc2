"""Tables in blocks and from the packed file: the same as in memory, to the last bit, and the same refusals."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import assert_refused, call, succeed
from test_table_files import BROKEN

import lowerbound as lb
from lowerbound.cli import show
from lowerbound.data import ArraySource, Column, Kind, StoredSource, Table, open_data, stored
from lowerbound.data.source import Subset
from lowerbound.data.tables import files
from lowerbound.data.tables.tally import MOST_LABELS, Moments, Tally, Wrong
from lowerbound.errors import DataError, ResourceError

RNG = np.random.default_rng(0)
ROWS = 300


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LOWERBOUND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def in_blocks(monkeypatch):
    """Has every table read a few rows at a time: 7 of 10 columns, and text in pieces of some hundred bytes."""
    monkeypatch.setattr(files, "BLOCK_CELLS", 70)
    monkeypatch.setattr(files, "_LARGEST_ROW", 400)
    monkeypatch.setattr(files, "_SCANNED", 5)


@pytest.fixture
def nothing_held(monkeypatch):
    """Has every table packed, however small."""
    monkeypatch.setattr(stored, "HELD_BYTES", -1)


def cells(count: int = ROWS) -> dict[str, pa.Array]:
    """Ten columns of all kinds with holes, of which two begin like others than they are."""
    where = [RNG.random(count) < 0.1 for _ in range(8)]
    numbers = {
        "real": RNG.normal(5, 3, count).round(3),
        "skewed": np.exp(2 * RNG.normal(size=count)).round(4) + 0.001,
        "count": RNG.integers(0, 90, count),
        "late": np.where(np.arange(count) < count - 25, RNG.integers(0, 2, count), np.arange(count) % 25),
        "code": RNG.integers(0, 4, count),
    }
    arrays = {name: pa.array(v, mask=w) for (name, v), w in zip(numbers.items(), where, strict=False)}
    labels = RNG.choice(["ü, b", "x\ny", 'say "so"', "plain"], count)
    return arrays | {
        "label": pa.array(labels, mask=where[5]),
        "rare": pa.array(np.where(np.arange(count) == count - 2, "last", "usual")),
        "day": pa.array([f"20{y:02d}-03-{1 + y % 28:02d}" for y in RNG.integers(0, 99, count)], mask=where[6]),
        "constant": pa.array([7.5] * count),
        "id": pa.array([f"p{i}" for i in range(count)]),
    }


def saved(path, arrays):
    if path.suffix == ".parquet":
        pq.write_table(pa.table(arrays), path, row_group_size=41)
        return path
    rows = zip(*(["" if v is None else str(v) for v in a.to_pylist()] for a in arrays.values()), strict=True)
    quoted = [",".join('"' + c.replace('"', '""') + '"' if set(c) & set(',"\n') else c for c in row) for row in rows]
    path.write_text("\n".join([",".join(arrays), *quoted]), newline="")  # without a line's end
    return path


def everything(data):
    return {
        name: data.split(name).examples(torch.arange(len(data.split(name)))).x for name in ("train", "valid", "test")
    }


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_packed_table_is_the_one_in_memory_to_the_last_bit(suffix, tmp_path, in_blocks, monkeypatch):
    path = str(saved(tmp_path / f"t{suffix}", cells()))
    held = open_data(path, options={"ignore": ("id",)})
    assert isinstance(held.train, ArraySource)
    assert not (tmp_path / "cache" / "tables").exists()
    monkeypatch.setattr(stored, "HELD_BYTES", -1)
    read = open_data(path, options={"ignore": ("id",)})
    assert isinstance(read.train, Subset)
    assert isinstance(read.train.source, StoredSource)
    assert read.view.reading == held.view.reading
    for name, x in everything(held).items():
        assert torch.equal(x.view(torch.int32), everything(read)[name].view(torch.int32)), name
        index = torch.randperm(len(x))
        assert torch.equal(read.split(name).examples(index).x.nan_to_num(), x[index].nan_to_num())
    assert read.test.fingerprint == open_data(path, options={"ignore": ("id",)}).test.fingerprint


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_blocks_tell_of_a_column_what_all_rows_at_once_tell(suffix, tmp_path, request):
    arrays = cells()
    path = saved(tmp_path / f"t{suffix}", arrays)
    at_once = Table(ignore=("id",)).fitted(path)
    request.getfixturevalue("in_blocks")
    assert len(list(files.opened(path).blocks())) == -(-ROWS // 7)
    columns = Table(ignore=("id",)).fitted(path).columns
    assert {c.name: c.kind for c in columns} == {
        "real": Kind.REAL, "skewed": Kind.POSITIVE, "count": Kind.COUNT, "late": Kind.COUNT, "code": Kind.CATEGORICAL,
        "label": Kind.CATEGORICAL, "rare": Kind.BINARY, "day": Kind.DATE, "constant": Kind.REAL,
    }  # fmt: skip
    for one, other in zip(columns, at_once.columns, strict=True):
        assert (one.levels, one.shares, one.decimals, one.storage) == (
            other.levels, other.shares, other.decimals, other.storage,
        )  # fmt: skip
        assert (one.loc, one.scale) == pytest.approx((other.loc, other.scale), rel=1e-14)
    values = arrays["skewed"].drop_null().to_numpy()
    assert columns[1].loc == pytest.approx(np.log(values).mean(), rel=1e-14)
    assert columns[1].scale == pytest.approx(np.log(values).std(), rel=1e-14)
    assert columns[5].shares == pytest.approx(
        [arrays["label"].to_pylist().count(v) / len(arrays["label"].drop_null()) for v in columns[5].levels], rel=1e-5
    )


@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e150])
def test_moments_of_parts_are_those_of_the_whole(unit):
    values = unit * np.exp(RNG.normal(size=1000))
    moments = Moments()
    for part in np.split(values, [0, 1, 2, 500, 990]):
        moments.add(part)
    scaled = values / unit
    away = scaled - scaled.mean()
    assert moments.mean == pytest.approx(values.mean(), rel=1e-14)
    assert moments.std == pytest.approx(unit * scaled.std(), rel=1e-13)
    assert moments.skewness == pytest.approx((away**3).mean() / scaled.std() ** 3, rel=1e-12)


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_broken_is_refused_in_the_same_words(name, tmp_path, monkeypatch, request):
    content, _ = BROKEN[name]
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as whole:
        open_data(str(path))
    monkeypatch.setattr(files, "BLOCK_CELLS", 6)
    monkeypatch.setattr(files, "_SCANNED", 3)
    if name != "a huge cell":
        monkeypatch.setattr(files, "_LARGEST_ROW", 1200 if name == "a long label" else 30)
    request.getfixturevalue("nothing_held")
    with pytest.raises(DataError) as raised:
        open_data(str(path))
    assert str(raised.value) == str(whole.value)
    assert not (tmp_path / "cache" / "tables").exists()


def test_what_is_wrong_far_down_has_its_row_and_the_first_five_are_named(tmp_path, in_blocks, nothing_held):
    lines = ["a,b", *(f"{i}.5,{'xyz'[i % 3]}" for i in range(200))]
    path = tmp_path / "t.csv"
    for row in (150, 160, 170, 180, 185, 190, 199):
        lines[row] = lines[row].replace(".5", ".5x")
    path.write_text("\n".join(lines))
    listed = "; ".join(f"row {row}: '{row - 1}.5x'" for row in (150, 160, 170, 180, 185))
    with pytest.raises(DataError, match=f"'a' is a number, but not at {listed} and 2 more"):
        open_data(str(path))
    with pytest.raises(DataError, match=f"'a' should hold real, but not at {listed} and 2 more"):
        open_data(str(path), reading=Table((Column("a", Kind.REAL),)))
    path.write_text("\n".join([*lines[:120], "1,2,3", *lines[120:140], "5", *lines[200:]]))
    with pytest.raises(DataError, match=r"row 120 has 3; row 141 has 1\. Put"):
        open_data(str(path))
    path.write_bytes("\n".join(lines[:60]).encode() + "\n3,é".encode("latin-1") + b"\n" + "é,1\n".encode())
    with pytest.raises(DataError, match="line 61 has the byte 0xe9"):
        open_data(str(path))
    path.write_bytes("\n".join(lines[:60]).encode() + "é".encode()[:1])
    with pytest.raises(DataError, match="line 60 has the byte 0xc3"):
        open_data(str(path))


def test_a_new_file_is_refused_and_its_strange_cells_named_as_in_memory(tmp_path, in_blocks, monkeypatch):
    table = Table((Column("v", Kind.REAL),)).fitted(saved(tmp_path / "a.parquet", {
        "v": pa.array(RNG.normal(size=90)), "c": pa.array(["x", "y", "z"] * 30), "n": pa.array(range(90)),
    }))  # fmt: skip
    body = [[f"{i}.25", "xyz"[i % 3], str(i)] for i in range(90)]
    body[50][1], body[77][1], body[80][2] = "unseen", "other", "-4"
    path = tmp_path / "b.csv"
    path.write_text("\n".join(["v,c,n", *(",".join(row) for row in body)]))
    said = []
    for size in (stored.HELD_BYTES, -1, -1):  # the third finds it packed
        monkeypatch.setattr(stored, "HELD_BYTES", size)
        with pytest.warns(UserWarning, match="row 51: 'unseen'; row 78: 'other'; column 'n': row 81: '-4'") as warned:
            x = table.whole(path).examples(torch.arange(90)).x
        said.append((str(warned[0].message), x.nan_to_num().tolist()))
        assert x.isnan().nonzero().tolist() == [[50, 1], [77, 1], [80, 2]]
    assert said[0] == said[1] == said[2]
    (packed,) = (tmp_path / "cache" / "tables").iterdir()
    body[60][0], body[3][0] = "many", "1e60"
    path.write_text("\n".join(["v,c,n", *(",".join(row) for row in body)]))
    with pytest.raises(DataError, match="'v' should hold real, but not at row 4: '1e60'; row 61: 'many'"):
        table.whole(path)
    assert list((tmp_path / "cache" / "tables").iterdir()) == [packed], "nothing is left of what was refused"


def test_a_table_that_has_changed_is_packed_again(tmp_path, nothing_held):
    path = tmp_path / "t.csv"
    for number in (1, 2):
        path.write_text("a\n" + "\n".join(f"{number}{i}.5" for i in range(40 + number)))
        assert len(open_data(str(path), reading=Table((Column("a", Kind.REAL),))).train) == 32 + number
    packed = list((tmp_path / "cache" / "tables").iterdir())
    assert len(packed) == 2
    packed[0].unlink()
    packed[1].unlink()
    open_data(str(path), reading=Table((Column("a", Kind.REAL),)))
    assert len(list((tmp_path / "cache" / "tables").iterdir())) == 1


def test_too_many_labels_are_not_all_kept(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a\n" + "\n".join(f"person {i}" for i in range(MOST_LABELS + 500)))
    with pytest.raises(DataError, match="with more than 10,000 different values in 10,500 cells"):
        open_data(str(path))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, nothing_held, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWERBOUND_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="LOWERBOUND_CACHE"):
        open_data(str(saved(tmp_path / "t.csv", {"v": pa.array(RNG.normal(size=30))})))


def test_wrong_cells_are_counted_over_blocks():
    wrong = Wrong()
    for start in range(0, 40, 4):
        wrong.add(np.array([False, True, False, True]), pa.array(["a", "b", "c", "d" * 50]), start)
    assert wrong.count == 20
    assert str(wrong).startswith(f"row 2: 'b'; row 4: '{'d' * 36}...; row 6: 'b'; row 8: ")
    assert str(wrong).endswith("row 10: 'b' and 15 more")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_finding_the_columns_and_packing_both_tell_how_far_they_are(suffix, tmp_path, in_blocks, monkeypatch):
    path = saved(tmp_path / f"t{suffix}", cells())
    asked = Table(ignore=("id",))

    def told(reading):
        shares = []
        open_data(str(path), reading=reading, on_progress=lambda done, total: shares.append(done / total))
        return shares

    # 7 rows a block of 300; text comes in pieces of some rows, and rows are not equally long.
    once = pytest.approx([min(7 * k, ROWS) / ROWS for k in range(1, 44)], abs=0.05 if suffix == ".csv" else 1e-4)
    shares = told(asked)
    assert shares == once
    assert shares[-1] == 1
    assert told(asked.fitted(path)) == []
    monkeypatch.setattr(stored, "HELD_BYTES", -1)
    both = told(asked)
    assert both[:43] == both[43:] == once
    shutil.rmtree(tmp_path / "cache")
    assert told(asked.fitted(path)) == once


def test_rows_that_training_repeats_are_packed_as_all_others(tmp_path, nothing_held):
    path = saved(tmp_path / "t.csv", cells())
    data = open_data(str(path), reading=Table(ignore=("id",))).balanced("label")
    again = data.view.of(str(path))
    assert any(column.repeats for column in again.view.reading.columns)
    assert again.train.fingerprint == data.train.fingerprint
    assert len(list((tmp_path / "cache" / "tables").iterdir())) == 1


# the commands


def train(path, run, *options):
    return call(
        "train", "tabular", "--data", path, "--out", run, "--ignore", "id", "--epochs", 2, "--width", 8, "--latent-dim",
        2, "--num-samples", 2, "--device", "cpu", *options,
    )  # fmt: skip


def test_every_command_says_the_same_of_a_packed_table(tmp_path, in_blocks, monkeypatch):
    path = saved(tmp_path / "t.parquet", cells())
    said = {}
    for name, size in (("held", stored.HELD_BYTES), ("packed", -1)):
        monkeypatch.setattr(stored, "HELD_BYTES", size)
        run, out = tmp_path / name, tmp_path / f"{name}-out"
        succeed(train(path, run))
        judged = succeed(call("evaluate", run, "--samples", 5, "--gap", 0, "--json")).json
        succeed(call("encode", run, "--split", "all", "--draw", "--out", out / "codes.npz"))
        succeed(call("encode", run, "--split", "all", "--out", out / "codes.csv"))
        succeed(call("score", run, "--split", "all", "--samples", 5, "--out", out / "scores.csv"))
        succeed(call("impute", run, "--data", path, "--samples", 20, "--out", out / "t.csv", "--multiple", 1))
        succeed(call("sample", run, "--n", 20, "--out", out / "made.csv"))
        codes = {k: v.tolist() for k, v in np.load(out / "codes.npz").items()}
        assert len(codes["loc"]) == len((out / "codes.csv").read_text().splitlines()) - 1 == ROWS
        texts = {p.name: p.read_text() for p in sorted(out.iterdir()) if p.suffix == ".csv"}
        curve = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        said[name] = judged, codes, texts, [(line["loss"], line.get("valid_loss")) for line in curve]
    assert said["held"] == said["packed"]


def test_a_training_on_a_packed_table_resumes_exactly(tmp_path, nothing_held):
    path = saved(tmp_path / "t.csv", cells())
    whole = tmp_path / "whole"
    succeed(train(path, whole, "--save-every", 0))
    parts = stopped_early(whole, tmp_path / "parts")
    succeed(train(path, parts, "--save-every", 0, "--resume"))
    assert_same_end(whole, parts)


def stopped_early(whole: Path, parts: Path) -> Path:
    """A copy of a run that has only its first checkpoint."""
    shutil.copytree(whole, parts)
    for other in sorted((parts / "checkpoints").iterdir())[1:]:
        shutil.rmtree(other)
    (parts / "manifest.json").unlink()
    (parts / "model.safetensors").unlink()
    return parts


def without(tree, *names):
    """The same JSON without some keys, wherever they are."""
    if isinstance(tree, list):
        return [without(one, *names) for one in tree]
    return {k: without(v, *names) for k, v in tree.items() if k not in names} if isinstance(tree, dict) else tree


def sign(folder: Path) -> None:
    """Makes a manifest true again."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["sha256"]}
    path.write_text(json.dumps(manifest))


def written_before(run: Path, *names: str) -> Path:
    """Takes some keys out of a run's description, as if it had been written before there were such."""
    path = run / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(without(record, *names)))
    assert len(path.read_text()) < len(json.dumps(record))
    for checkpoint in (run / "checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_text())
        state["run_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (checkpoint / "state.json").write_text(json.dumps(state))
        sign(checkpoint)
    if (run / "manifest.json").exists():
        sign(run)
    return run


def assert_same_end(whole: Path, other: Path) -> None:
    assert (other / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_resumed_training_does_not_look_for_the_columns_again(tmp_path, in_blocks, monkeypatch):
    monkeypatch.setattr(show, "_QUIET_SECONDS", 0)
    path, whole = saved(tmp_path / "t.csv", cells()), tmp_path / "whole"
    found = succeed(train(path, whole, "--save-every", 0)).err
    assert "%  reading" in found
    looked = []
    monkeypatch.setattr(Tally, "add", lambda *_: looked.append(1))
    parts = stopped_early(whole, tmp_path / "parts")
    resumed = succeed(train(path, parts, "--save-every", 0, "--resume"))
    assert "%  reading" not in resumed.err
    assert not looked
    assert_same_end(whole, parts)
    # Where something else is asked for, it must.
    before = (parts / "run.json").read_bytes()
    monkeypatch.undo()
    for asked in (["--columns", "count=real"], ["--ignore", "day"], ["--balance", "label"]):
        assert_refused(train(path, parts, "--resume", *asked), 2, "other settings")
    assert (parts / "run.json").read_bytes() == before


def test_a_training_does_not_go_on_with_another_table(tmp_path):
    arrays = cells()
    path, run = saved(tmp_path / "t.csv", arrays), tmp_path / "run"
    succeed(train(path, run))
    saved(path, {name: array[: ROWS - 1] for name, array in arrays.items()})
    assert_refused(train(path, run, "--resume"), 2, "data.sizes.test was 30 and is now 29")
    saved(path, arrays | {"real": pa.array(RNG.normal(5, 3, ROWS))})
    assert_refused(train(path, run, "--resume"), 2, "data.fingerprint.train was ")
    saved(path, {name: array for name, array in arrays.items() if name != "real"})
    assert_refused(train(path, run, "--resume"), 3, "the columns of the training table, but real is not there")
    saved(path, arrays)
    succeed(train(path, run, "--resume"))


def test_a_run_of_a_table_from_before_its_columns_had_repeats_is_judged_and_goes_on(tmp_path):
    path, whole = saved(tmp_path / "t.csv", cells()), tmp_path / "whole"
    succeed(train(path, whole, "--save-every", 0))
    judge = ("--samples", 5, "--gap", 0, "--json")
    judged = succeed(call("evaluate", whole, *judge)).json
    for name, run in (
        ("finished", shutil.copytree(whole, tmp_path / "finished")),
        ("stopped", stopped_early(whole, tmp_path / "stopped")),
    ):
        written_before(run, "repeats", "reading_options")
        assert lb.load(run).likelihood.columns[0].repeats == ()
        if name == "finished":
            assert succeed(call("evaluate", run, *judge)).json == judged
        succeed(train(path, run, "--save-every", 0, "--resume"))
        assert_same_end(whole, run)
        assert '"repeats"' not in (run / "run.json").read_text()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_filled_in_block_by_block(suffix, tmp_path, in_blocks):
    arrays = cells()
    path, run, out = saved(tmp_path / f"t{suffix}", arrays), tmp_path / "run", tmp_path / f"filled{suffix}"
    succeed(train(path, run))
    told = succeed(
        call("impute", run, "--data", path, "--samples", 20, "--out", out, "--intervals", "--multiple", 2, "--json")
    ).json
    assert told["n"] == ROWS
    assert told["filled"] == sum(array.null_count for name, array in arrays.items() if name != "id")
    filled = {c.name: files.read(out)[c.name] for c in Table(ignore=("id",)).fitted(path).columns}
    before = files.read(path)
    for name, array in filled.items():
        for old, new in zip(before[name].to_pylist(), array.to_pylist(), strict=True):
            assert new not in (None, "")
            assert new == old or old in (None, "")
    names = files.opened(out).names
    assert names[:10] == tuple(arrays)
    assert names[10:] == tuple(
        f"{n}_{end}" for n in ("real", "skewed", "count", "late", "day") for end in ("low", "high")
    )
    low, high = (files.read(out)[f"real_{end}"].to_pylist() for end in ("low", "high"))
    for value, least, most in zip(before["real"].to_pylist(), low, high, strict=True):
        assert (value in (None, "")) == (least not in (None, "")) == (most not in (None, ""))
    assert files.opened(tmp_path / f"filled-2{suffix}").names == tuple(arrays)
    assert_refused(call("impute", run, "--data", path, "--out", path / "x.csv"), 6, "could not be written")
