"""The command `score` on real files: digits, a table with holes, text, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command import Answer, assert_refused, call, succeed

import lowerbound as lb

COLUMNS = ["row", "log_px", "log_px_stderr", "elbo", "distortion", "rate", "typicality", "anomaly"]


def read_csv(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        header, *body = csv.reader(file)
    return dict(zip(header, np.array(body, dtype=float).T, strict=True))


def scored(folder: Path, *options: object) -> Answer:
    return succeed(call("score", folder, "--samples", 5, "--device", "cpu", *options))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of real digits, trained for two seconds."""
    path = tmp_path_factory.mktemp("score") / "run"
    small = ["--epochs", 5, "--width", 64, "--latent-dim", 8, "--device", "cpu"]
    succeed(call("train", "mlp", "--data", "mnist-5k", "--out", path, *small))
    return path


def test_digits_are_scored_into_every_kind_of_file(digits_run: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"scores{suffix}" for suffix in (".csv", ".parquet", ".npz")]
    told = [scored(digits_run, "--out", path, "--json").json for path in paths]
    table = read_csv(paths[0])
    assert list(table) == [*COLUMNS, "label"]
    assert (table["row"] == np.arange(500)).all()
    assert (table["label"] == lb.open_data("mnist-5k").test.labels.numpy()).all()
    parquet = pq.read_table(paths[1])
    arrays = np.load(paths[2])
    for name, column in table.items():
        assert (column == parquet[name].to_numpy()).all()
        assert (column == arrays[name]).all()
    assert arrays["row"].dtype == np.int64
    summary = told[0]
    assert summary["n"] == 500
    assert summary["num_samples"] == 5
    assert summary["reference"]["n"] == 4000
    assert summary["means"]["anomaly"] == pytest.approx(table["anomaly"].mean())
    above = (table["anomaly"] > summary["reference"]["anomaly_95"]).mean()
    assert summary["share_above_95"] == pytest.approx(above)
    assert [one["means"] for one in told] == [summary["means"]] * 3


def test_what_is_no_digit_is_stranger_than_every_second_digit(digits_run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    digits = lb.open_data("mnist-5k").test.examples(torch.arange(40)).x.numpy()
    noise = (rng.random((40, 1, 28, 28)) < 0.13).astype(np.float32)
    strange = np.concatenate([noise, np.zeros((1, 1, 28, 28)), np.ones((1, 1, 28, 28)), 1 - digits[:8]])
    x = np.concatenate([digits, strange]).astype(np.float32)
    # New files come in splits too; all of them are scored through the three.
    np.savez(tmp_path / "new.npz", x=x, y=np.r_[np.zeros(40, int), np.ones(len(strange), int)])
    found: list[dict[str, np.ndarray]] = []
    for split in ("train", "valid", "test"):
        out = tmp_path / f"{split}.csv"
        scored(digits_run, "--data", tmp_path / "new.npz", "--split", split, "--out", out)
        found.append(read_csv(out))
    label, anomaly = (np.concatenate([part[name] for part in found]) for name in ("label", "anomaly"))
    assert len(label) == len(x)
    assert anomaly[label == 1].min() > np.median(anomaly[label == 0])


def test_the_regret_and_a_limit(digits_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    told = scored(digits_run, "--out", out, "--limit", 12, "--regret", 20, "--json").json
    table = read_csv(out)
    assert list(table) == [*COLUMNS, "regret", "label"]
    assert len(table["row"]) == told["n"] == 12
    # Where nothing better was found it is 0; elsewhere there is a gain, but for the noise of 200 draws.
    assert table["regret"].min() > -0.5
    assert table["regret"].max() > 0.5


def test_a_reference_of_ones_own(digits_run: Path, tmp_path: Path) -> None:
    told = [
        scored(digits_run, "--out", tmp_path / "scores.csv", "--limit", 30, "--json", *options).json
        for options in ([], ["--reference", "mnist-5k"], ["--data", "mnist-5k"])
    ]
    assert told[0]["means"] == told[1]["means"] == told[2]["means"]


def test_a_table_with_holes_is_scored_row_by_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lines = ["age,city,income"]
    for _ in range(300):
        at = int(rng.integers(3))
        cells = [f"{20 + 20 * at + rng.normal():.1f}", ("Oslo", "Rome", "Bonn")[at], f"{at + 0.1 * rng.normal():.3f}"]
        lines.append(",".join("" if rng.random() < 0.1 else cell for cell in cells))
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    small = ["--epochs", 60, "--width", 32, "--latent-dim", 2, "--lr", 5e-3, "--num-samples", 5, "--device", "cpu"]
    succeed(call("train", "tabular", "--data", tmp_path / "people.csv", "--out", tmp_path / "run", *small))
    # The last two are well within each column, but no such people were seen together.
    new = [lines[0], *(line for line in lines[1:21] if not {""} & set(line.split(","))), "20.1,Bonn,0.0", "60,Oslo,1.9"]
    (tmp_path / "new.csv").write_text("\n".join(new) + "\n")
    out = tmp_path / "scores.csv"
    answer = scored(tmp_path / "run", "--data", tmp_path / "new.csv", "--split", "all", "--out", out)
    assert f"Wrote {len(new) - 1} scores" in answer.words
    table = read_csv(out)
    assert "label" not in table
    anomaly = table["anomaly"]
    assert anomaly[-2:].min() > anomaly[:-2].max()
    # Holes are no obstacle.
    scored(tmp_path / "run", "--data", tmp_path / "people.csv", "--split", "all", "--out", out)
    assert np.isfinite(np.stack(list(read_csv(out).values()))).all()


def test_lines_of_text_are_scored(tmp_path: Path) -> None:
    words = [f"{a}{b}{c}" for a in "bdkt" for b in "aeiou" for c in ("no", "ra", "li", "su", "ma")]
    (tmp_path / "words.txt").write_text("\n".join(words * 3) + "\n")
    small = ["--epochs", 2, "--latent-dim", 2, "--batch-size", 50, "--device", "cpu"]
    succeed(call("train", "text", "--data", tmp_path / "words.txt", "--out", tmp_path / "run", *small))
    scored(tmp_path / "run", "--out", tmp_path / "scores.npz")
    assert np.isfinite(np.load(tmp_path / "scores.npz")["anomaly"]).all()


def test_one_draw_is_valid_json(digits_run: Path, tmp_path: Path) -> None:
    answer = succeed(call("score", digits_run, "--samples", 1, "--limit", 5, "--out", tmp_path / "s.csv", "--json"))
    assert json.loads(answer.out)["n"] == 5
    assert np.isnan(read_csv(tmp_path / "s.csv")["log_px_stderr"]).all()


def test_what_is_no_use_is_refused_before_anything_is_written(digits_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    assert_refused(call("score", digits_run, "--out", tmp_path / "scores.png"), 2, ".csv or .parquet or .npz")
    assert_refused(call("score", digits_run, "--out", out, "--regret", -1), 2, "--regret", "-1")
    assert_refused(call("score", digits_run, "--out", out, "--samples", 0), 2, "num_samples=0")
    assert_refused(call("score", digits_run, "--out", out, "--limit", 0), 2, "a limit of 0")
    assert_refused(call("score", digits_run, "--out", out, "--split", "tset"), 2, "Did you mean test?")
    assert_refused(call("score", digits_run, "--out", out, "--data", tmp_path / "no.npy"), 3, "no.npy")
    assert_refused(call("score", digits_run, "--out", out, "--data", "digits"), 2, "(1, 8, 8)")
    assert_refused(call("score", tmp_path, "--out", out), 4)
    assert not list(tmp_path.iterdir())
