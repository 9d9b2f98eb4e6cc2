"""The commands on tables, as users run them: a CSV with holes in, models, filled and made tables out."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import assert_refused, call, run, succeed, tiny

import lowerbound as lb
from lowerbound.data import Kind

HEADER = ["id", "age", "income", "city", "since", "sick", "=x"]
CITIES = ["Oslo", "Rome", "=Bonn"]


def rows(count: int, seed: int, share: float) -> list[list[str]]:
    """People whose age, income and city say much of one another."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        at = int(rng.integers(3))
        age = int(rng.poisson(20 + 20 * at))
        cells = [
            str(age), f"{np.exp(8 + at + 0.1 * rng.normal()):.2f}", CITIES[at],
            f"20{10 + at}-0{rng.integers(1, 9)}-1{rng.integers(0, 9)}", "no" if rng.random() < 0.9 else "yes",
            f"{rng.normal():.3f}",
        ]  # fmt: skip
        hidden = rng.random(len(cells)) < share
        made.append([f"p{number}", *("" if h else c for h, c in zip(hidden, cells, strict=True))])
    return made


def save(path: Path, body: list[list[str]], header: list[str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header or HEADER, *body])
    return path


def load(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        header, *body = csv.reader(file)
    return header, body


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where `train.csv` and the model `run` trained on it lie."""
    path = tmp_path_factory.mktemp("tables")
    save(path / "train.csv", rows(240, 0, 0.2))
    answer = run(
        "train", "tabular", "--data", path / "train.csv", "--out", path / "run", "--ignore", "id", "--columns",
        "age=count,income=positive", "--epochs", 60, "--width", 32, "--latent-dim", 3, "--lr", 5e-3, "--num-samples", 5,
        "--device", "cpu",
    )  # fmt: skip
    succeed(answer)
    return path


def test_what_was_said_of_the_columns_is_kept_with_the_run(folder):
    record = json.loads((folder / "run" / "run.json").read_text())
    reading = record["data"]["view"]["reading"]
    kinds = {column["name"]: column["kind"]["value"] for column in reading["columns"]}
    assert kinds == {
        "age": Kind.COUNT, "income": Kind.POSITIVE, "city": Kind.CATEGORICAL, "since": Kind.DATE,
        "sick": Kind.BINARY, "=x": Kind.REAL,
    }  # fmt: skip
    assert reading["ignore"] == ["id"]
    assert not (folder / "run" / "figures" / "samples.png").exists()


def test_a_table_is_judged(folder):
    found = succeed(call("evaluate", folder / "run", "--samples", 50, "--gap", 0, "--json")).json
    assert found["is_likelihood"] is True
    assert found["bits_per_dim"] is None
    assert found["log_px"] >= found["elbo"]
    assert any("observed cells" in note for note in found["notes"])


def test_holes_are_filled_and_all_else_stays(folder, tmp_path):
    whole = rows(60, 1, 0.0)
    holed = [list(row) for row in whole]
    for number, row in enumerate(holed):
        for cell in {1 + number % 6, 3}:
            row[cell] = ""
    source, out = save(tmp_path / "holes.csv", holed), tmp_path / "filled.csv"
    told = succeed(
        call("impute", folder / "run", "--data", source, "--out", out, "--samples", 200, "--multiple", 2, "--json")
    )
    assert told.json["filled"] == sum(cell == "" for row in holed for cell in row)
    assert told.json["files"] == [str(out), str(tmp_path / "filled-1.csv"), str(tmp_path / "filled-2.csv")]
    for file in told.json["files"]:
        header, body = load(Path(file))
        assert header == HEADER
        for row, old in zip(body, holed, strict=True):
            assert all(a == b for a, b in zip(row, old, strict=True) if b)
            assert all(row)
            assert row[3] in (*CITIES, "'=Bonn")
            int(row[1])
    # The cities were learned: age and income tell them.
    _, body = load(out)
    right = [row[3].removeprefix("'") == old[3] for row, old in zip(body, whole, strict=True)]
    assert np.mean(right) > 0.8
    assert load(tmp_path / "filled-1.csv") != load(tmp_path / "filled-2.csv")


def test_intervals_stand_beside_the_cells_that_were_missing(folder, tmp_path):
    source = save(tmp_path / "holes.csv", [["a", "", "8000.00", "", "2011-03-10", "no", "0.100"], *rows(3, 2, 0)])
    out = tmp_path / "filled.csv"
    succeed(call("impute", folder / "run", "--data", source, "--out", out, "--intervals"))
    header, body = load(out)
    assert header == [*HEADER, "age_low", "age_high"]
    assert int(body[0][7]) <= int(body[0][1]) <= int(body[0][8])
    assert body[1][7:] == ["", ""]
    parquet = tmp_path / "filled.parquet"
    succeed(call("impute", folder / "run", "--data", source, "--out", parquet, "--intervals"))
    assert pq.read_table(parquet)["age_low"].to_pylist()[1:] == [None] * 3


def test_several_runs_fill_in_what_lies_between_theirs(folder, tmp_path):
    words = (
        "train", "tabular", "--data", folder / "train.csv", "--ignore", "id", "--epochs", 2, "--width", 8,
        "--latent-dim", 2, "--num-samples", 2, "--device", "cpu", "--columns",
    )  # fmt: skip
    other, runs = tmp_path / "other", (folder / "run", tmp_path / "second")
    succeed(call(*words, "age=count,income=positive", "--out", runs[1]))
    succeed(call(*words, "age=real,income=positive", "--out", other))
    source = save(tmp_path / "holes.csv", [[*row[:2], "", *row[3:]] for row in rows(40, 6, 0.0)])
    found = {}
    for name, given in {"first": runs[:1], "second": runs[1:], "both": runs}.items():
        out = tmp_path / f"{name}.csv"
        told = succeed(call("impute", *given, "--data", source, "--out", out, "--multiple", 2))
        assert f"of {1000 * len(given):,}." in told.out
        # What the mean is of: of a positive column its logarithm.
        found[name] = np.log([float(row[2]) for row in load(out)[1]])
    # The second has learned nothing yet, so they are far apart; the rest is the noise of 1,000 draws.
    assert np.abs(found["first"] - found["second"]).max() > 0.5
    assert np.abs(found["both"] - (found["first"] + found["second"]) / 2).max() < 0.05
    # A completed table is of one run: the first's strays less from what it expects.
    drawn = [np.log([float(row[2]) for row in load(tmp_path / f"both-{n}.csv")[1]]) for n in (1, 2)]
    assert (drawn[0] - found["first"]).std() < 0.7 < (drawn[1] - found["first"]).std()
    refused = call("impute", *runs, other, "--data", source, "--out", tmp_path / "x.csv")
    assert_refused(refused, 2, "other differs from")
    assert "columns age" in refused.err
    assert_refused(call("impute", other, other, "--data", source, "--out", tmp_path / "x.csv"), 2, "different ones")
    assert_refused(call("impute", "--data", source, "--out", tmp_path / "x.csv"), 2, "got none")
    assert not (tmp_path / "x.csv").exists()


def test_a_parquet_file_is_filled_with_its_types(folder, tmp_path):
    body = rows(20, 3, 0.3)
    columns = dict(zip(HEADER, zip(*body, strict=True), strict=True))
    ages = pa.array([int(v) if v else None for v in columns["age"]], pa.int16())
    arrays = {name: pa.array([v or None for v in values]) for name, values in columns.items()} | {"age": ages}
    source, out = tmp_path / "t.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table(arrays), source)
    succeed(call("impute", folder / "run", "--data", source, "--out", out, "--samples", 50))
    filled = pq.read_table(out)
    assert filled.schema.field("age").type == pa.int16()
    assert filled["id"].to_pylist() == list(columns["id"])
    assert filled["age"].null_count == filled["city"].null_count == 0
    assert [a for a, b in zip(filled["age"].to_pylist(), ages.to_pylist(), strict=True) if b is not None] == [
        b for b in ages.to_pylist() if b is not None
    ]


def parquet_of(path: Path, body: list[list[str]], **changed: pa.Array) -> Path:
    """Saves people as Parquet, text in all columns but those given."""
    columns = dict(zip(HEADER, zip(*body, strict=True), strict=True))
    arrays = {name: pa.array([v or None for v in cells]) for name, cells in columns.items()}
    pq.write_table(pa.table(arrays | changed), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_of_columns_that_parquet_has_no_type_for_nothing_is_known(folder, tmp_path, suffix):
    """As pandas writes a column of None."""
    nulls = {name: pa.nulls(20) for name in ("age", "income", "city", "since", "sick")}
    source = parquet_of(tmp_path / "t.parquet", rows(20, 3, 0.0), **nulls)
    out = tmp_path / f"out{suffix}"
    told = succeed(call("impute", folder / "run", "--data", source, "--out", out, "--samples", 20, "--json"))
    assert told.json["filled"] == 100
    if suffix == ".csv":
        assert all(all(row) for row in load(out)[1])
        return
    filled = pq.read_table(out)
    types = [str(filled.schema.field(name).type) for name in nulls]
    assert types == [
        "int64",
        "double",
        "string",
        "date32[day]",
        "string",
    ]
    assert all(filled[name].null_count == 0 for name in nulls)


@pytest.mark.parametrize("column", ["sick", "since"])
def test_holes_whose_type_cannot_hold_what_is_filled_in_are_refused(folder, tmp_path, column):
    source = parquet_of(tmp_path / "t.parquet", rows(20, 3, 0.3), **{column: pa.nulls(20, pa.float32())})
    words = ("impute", folder / "run", "--data", source, "--samples", 20, "--out")
    assert_refused(call(*words, tmp_path / "out.parquet"), 3, f"'{column}' has the Arrow type float")
    assert not (tmp_path / "out.parquet").exists()
    succeed(call(*words, tmp_path / "out.csv"))


def test_a_column_that_is_no_text_is_copied_to_parquet_and_refused_as_text(folder, tmp_path):
    source = parquet_of(tmp_path / "t.parquet", rows(20, 3, 0.3), tags=pa.array([["a", "b"]] * 20))
    out = tmp_path / "out.parquet"
    succeed(call("impute", folder / "run", "--data", source, "--out", out, "--samples", 20))
    assert pq.read_table(out)["tags"].to_pylist() == [["a", "b"]] * 20
    refused = call("impute", folder / "run", "--data", source, "--out", tmp_path / "out.csv", "--samples", 20)
    assert_refused(refused, 2, "list<", ".parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "t.parquet"]


def test_an_interval_has_no_name_that_the_file_has_already(folder, tmp_path):
    source = save(tmp_path / "t.csv", [[*row, "1"] for row in rows(20, 3, 0.3)], [*HEADER, "age_low"])
    words = ("impute", folder / "run", "--data", source, "--out", tmp_path / "out.csv", "--samples", 20)
    assert_refused(call(*words, "--intervals"), 2, "'age_low' twice")
    assert not (tmp_path / "out.csv").exists()
    succeed(call(*words))


def test_folders_are_made_for_tables_as_for_all_that_is_written(folder, tmp_path):
    out = tmp_path / "new" / "folder" / "made.csv"
    succeed(call("sample", folder / "run", "--n", 3, "--out", out))
    assert len(load(out)[1]) == 3
    (tmp_path / "file").touch()
    assert_refused(call("sample", folder / "run", "--out", tmp_path / "file" / "made.csv"), 6, "could not be written")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_rows_are_made(folder, tmp_path, suffix):
    out = tmp_path / f"made{suffix}"
    succeed(call("sample", folder / "run", "--n", 50, "--out", out))
    if suffix == ".parquet":
        table = pq.read_table(out)
        assert table.column_names == HEADER[1:]
        assert [str(field.type) for field in table.schema] == [
            "int64",
            "double",
            "string",
            "date32[day]",
            "string",
            "double",
        ]
        assert set(table["city"].to_pylist()) <= set(CITIES)
        return
    with out.open(newline="") as file:
        header, *body = csv.reader(file, delimiter="," if suffix == ".csv" else "\t")
    assert header == ["age", "income", "city", "since", "sick", "'=x"]
    assert len(body) == 50
    assert {row[2] for row in body} <= {"Oslo", "Rome", "'=Bonn"}
    assert len({row[2] for row in body}) > 1
    assert all(float(row[1]) > 0 and int(row[0]) >= 0 and row[4] in ("yes", "no") for row in body)


def test_rows_are_made_with_given_cells(folder, tmp_path):
    out = tmp_path / "made.csv"
    succeed(call("sample", folder / "run", "--n", 40, "--out", out, "--where", "city=Oslo", "--where", "sick=yes"))
    _, body = load(out)
    assert {(row[2], row[4]) for row in body} == {("Oslo", "yes")}
    # Those of Oslo are young: about 20, of 20 to 60.
    assert np.mean([int(row[0]) for row in body]) < 32


def test_a_given_cell_may_be_of_a_column_with_an_equals_sign_in_its_name(folder, tmp_path):
    out = tmp_path / "made.csv"
    succeed(call("sample", folder / "run", "--n", 5, "--out", out, "--where", "=x=0.125", "--where", "city==Bonn"))
    assert {(row[5], row[2]) for row in load(out)[1]} == {("0.125", "'=Bonn")}


def test_rows_are_drawn_whatever_they_are_written_as(folder, tmp_path):
    """The mean of p(x|z) has the likeliest labels and no noise: it is no row."""
    succeed(call("sample", folder / "run", "--n", 300, "--out", tmp_path / "x.npz"))
    succeed(call("sample", folder / "run", "--n", 300, "--out", tmp_path / "x.parquet"))
    x, rows_made = np.load(tmp_path / "x.npz")["x"], pq.read_table(tmp_path / "x.parquet")
    np.testing.assert_array_equal(x[:, 0], rows_made["age"].to_numpy())
    assert x[:, 5].std() > 0.5


def test_codes_are_written_in_the_order_of_a_new_file(folder, tmp_path):
    source = save(tmp_path / "new.csv", rows(30, 4, 0.1))
    out = tmp_path / "codes.csv"
    succeed(call("encode", folder / "run", "--out", out))
    assert len(load(out)[1]) == 24
    succeed(call("encode", folder / "run", "--data", source, "--split", "all", "--out", out))
    assert len(load(out)[1]) == 30


def test_unseen_labels_are_noted_and_kept(folder, tmp_path):
    body = rows(6, 5, 0.0)
    body[2][3], body[4][1] = "Atlantis", ""
    source, out = save(tmp_path / "new.csv", body), tmp_path / "filled.csv"
    answer = succeed(run("impute", folder / "run", "--data", source, "--out", out, "--samples", 20))
    assert "column 'city': row 3: 'Atlantis'" in answer.words
    filled = load(out)[1]
    assert filled[2] == body[2]
    assert filled[4][1]
    judged = run("evaluate", folder / "run", "--data", save(tmp_path / "b.csv", body * 5), "--samples", 5, "--gap", 0)
    assert "Note: " in succeed(judged).err
    assert "'Atlantis'" in judged.err


def test_what_is_no_number_in_a_new_file_is_refused_with_what_can_be_done_there(folder, tmp_path):
    body = rows(6, 5, 0.0)
    body[2][2], body[4][2] = "much", "inf"
    source = save(tmp_path / "new.csv", body)
    refused = call("impute", folder / "run", "--data", source, "--out", tmp_path / "x.csv")
    assert_refused(refused, 3, "row 3: 'much'; row 5: 'inf'", "leave them empty")
    assert "--columns" not in refused.err
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_a_files_name_may_be_no_text(tmp_path):
    """Its bytes are kept: it is found again by the run."""
    source = save(tmp_path / os.fsdecode(b"t\xff\n.csv"), [[f"{i}.5", str(i % 7)] for i in range(40)], ["a", "b"])
    words = ("--data", source, "--epochs", 1, "--width", 4, "--device", "cpu")
    env = {"PYTHONIOENCODING": "utf-8:strict"}
    out = tmp_path / os.fsdecode(b"run\xff")
    told = succeed(run("train", "tabular", *words, "--out", out, env=env))
    assert "lowerbound evaluate" in told.out
    succeed(run("evaluate", out, "--samples", 2, "--gap", 0, env=env))
    succeed(run("sample", out, "--n", 3, "--out", tmp_path / os.fsdecode(b"\xff.csv"), "--json", env=env))
    assert (tmp_path / os.fsdecode(b"\xff.csv")).read_text().startswith("a,b\n")
    source.write_text("a\n1.5\n")
    assert_refused(run("encode", out, "--data", source, "--out", tmp_path / "x.csv", env=env), 3, "\\n.csv")


def test_rare_labels_are_seen_more_often_with_balance_and_made_as_often_as_they_occur(folder, tmp_path):
    out = tmp_path / "balanced"
    succeed(
        call(
            "train", "tabular", "--data", folder / "train.csv", "--out", out, "--ignore", "id", "--balance", "sick",
            "--epochs", 30, "--width", 8, "--num-samples", 2, "--lr", 1e-2, "--device", "cpu",
        )
    )  # fmt: skip
    judged = succeed(call("evaluate", out, "--samples", 5, "--gap", 0, "--json")).json
    assert any("rare values of 'sick' were repeated" in note for note in judged["notes"])
    made = tmp_path / "made.csv"
    succeed(call("sample", out, "--n", 400, "--out", made))
    share = np.mean([row[4] == "yes" for row in load(made)[1]])
    seen = lb.load(out).likelihood.columns[4]
    assert seen.name == "sick"
    assert max(seen.repeats) > 2
    # Of 0.1 in the table, and 0.25 in training.
    assert 0.04 < share < 0.16


REFUSED = {
    "another suffix": (("impute", "{run}", "--data", "{csv}", "--out", "x.txt"), 2, ".parquet"),
    "no table": (("impute", "{run}", "--data", "none.csv", "--out", "x.csv"), 3, "cannot be read"),
    "too few tables": (("impute", "{run}", "--data", "{csv}", "--out", "x.csv", "--multiple", "-1"), 2, "--multiple"),
    "no column": (("sample", "{run}", "--out", "x.csv", "--where", "town=Oslo"), 2, "COLUMN=VALUE"),
    "no label": (("sample", "{run}", "--out", "x.csv", "--where", "city=Paris"), 2, "Oslo"),
    "no cell": (("sample", "{run}", "--out", "x.csv", "--where", "city"), 2, "COLUMN=VALUE"),
    "a number that x has no room for": (("sample", "{run}", "--out", "x.csv", "--where", "=x=1e300"), 2, "'1e300'"),
    "two cells of a column": (
        ("sample", "{run}", "--out", "x.csv", "--where", "sick=yes", "--where", "sick=no"), 2, "'sick' twice",
    ),
    "a mean of rows": (("sample", "{run}", "--out", "x.csv", "--no-draw"), 2, "drawn"),
    "a mean of rows as numbers": (("sample", "{run}", "--out", "x.npz", "--no-draw"), 2, "drawn"),
    "where without a table": (("sample", "{run}", "--out", "x.npz", "--where", "city=Oslo"), 2, "--where"),
    "label of a table": (("sample", "{run}", "--out", "x.csv", "--label", "1"), 2, "--where"),
    "kinds of a picture": (
        ("train", "tabular", "--data", "digits", "--out", "{new}", "--ignore", "id"), 2, "(ignore) mean nothing",
    ),
    "pictures": (("train", "tabular", "--data", "digits", "--out", "{new}"), 2, "learns tables"),
    "a recipe for other data": (
        ("train", "mlp", "--data", "{csv}", "--out", "{new}", "--ignore", "id"), 2, "Use the recipe tabular",
    ),
    "no such column": (
        ("train", "tabular", "--data", "{csv}", "--out", "{new}", "--ignore", "iid"), 2, "Did you mean id",
    ),
    "no such kind": (("train", "tabular", "--data", "{csv}", "--out", "{new}", "--columns", "age=cuont"), 2, "count"),
    "names": (("train", "tabular", "--data", "{csv}", "--out", "{new}"), 3, "--ignore id"),
    "balance by a number": (
        ("train", "tabular", "--data", "{csv}", "--out", "{new}", "--ignore", "id", "--balance", "income"), 2, "labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_paragraph(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, status, said = REFUSED[name]
    places = {"run": folder / "run", "csv": folder / "train.csv", "new": tmp_path / "new"}
    assert_refused(call(*(word.format(**places) for word in words)), status, said)
    assert not list(tmp_path.iterdir())


def test_a_model_of_pictures_makes_no_tables(tmp_path):
    succeed(call(*tiny(tmp_path / "run")))
    assert_refused(call("sample", tmp_path / "run", "--out", tmp_path / "x.csv"), 2, "not trained on a table")
