"""The command line as it should work: every verb, on real digits, with what it writes and prints."""

import csv
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Answer, call, run, succeed, tiny
from PIL import Image

import lowerbound as lb
from lowerbound.recipes import RECIPES

FIGURES = ("samples", "reconstructions", "interpolation", "latent", "curves")
KEYS = {
    "elbo",
    "elbo_stderr",
    "rate",
    "distortion",
    "log_px",
    "log_px_stderr",
    "num_samples",
    "n",
    "bits_per_dim",
    "ess_median",
    "khat_bad",
    "active_units",
    "latent_dim",
    "posterior_gap",
    "likelihood",
    "is_likelihood",
    "notes",
    "units",
}
VERBS = ("train", "evaluate", "sample", "reconstruct", "encode", "interpolate", "impute", "score", "recipes", "data")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        return np.asarray(image)


def evaluated(run_folder: Path, *options: object) -> Any:
    return succeed(call("evaluate", run_folder, "--json", "--limit", 50, "--samples", 20, *options)).json


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, source_name: str) -> tuple[Path, Answer]:
    """A run on real 28x28 digits, trained by the command in a process of its own, and what the command said."""
    path = tmp_path_factory.mktemp("runs") / "first"
    epochs = 1 if source_name == "mnist" else 14  # 110 updates of either
    options = ["--epochs", epochs, "--width", 64, "--latent-dim", 4, "--batch-size", 500, "--device", "cpu"]
    return path, run("train", "mlp", "--data", source_name, "--out", path, "--json", *options)


@pytest.fixture(scope="module")
def first(trained: tuple[Path, Answer]) -> Path:
    succeed(trained[1])
    return trained[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the 8x8 digits, which open in no time."""
    path = tmp_path_factory.mktemp("runs") / "small"
    succeed(call(*tiny(path, epochs=3)))
    return path


@pytest.fixture(scope="module")
def recipe_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def test_train_writes_a_whole_run(first: Path, source_name: str) -> None:
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["sha256"].keys() == {"run.json", "model.safetensors"}
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((first / name).read_bytes()).hexdigest() == digest
    record = json.loads((first / "run.json").read_text())
    assert record["recipe"] == "mlp"
    assert record["settings"]["latent_dim"] == 4
    assert record["settings"]["lr"] == 3e-3, "a default is resolved"
    assert record["data"]["source"] == source_name
    assert record["versions"]["torch"] == torch.__version__
    assert record["command"][:3] == ["lowerbound", "train", "mlp"]
    assert list((first / "checkpoints").glob("step-*/manifest.json"))
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    assert lines[-1]["progress"] == 1
    assert lines[-1]["valid_elbo"] > lines[0]["elbo"]
    assert not [path for path in first.rglob("*") if "tmp" in path.name]


@pytest.mark.parametrize("name", FIGURES)
def test_train_draws_figures_that_are_not_blank(first: Path, name: str) -> None:
    picture = pixels(first / "figures" / f"{name}.png")
    assert min(picture.shape[:2]) > 100
    assert len(np.unique(picture)) > 10


def test_train_prints_one_json_document_and_nothing_else(trained: tuple[Path, Answer]) -> None:
    path, answer = trained
    assert answer.json["finished"] is True
    assert answer.json["run"] == str(path)
    assert answer.json["valid"].keys() >= KEYS
    assert {Path(figure).stem for figure in answer.json["figures"]} == set(FIGURES)
    assert answer.err == ""


def test_evaluate_says_what_it_should(first: Path, source_name: str) -> None:
    answer = succeed(run("evaluate", first, "--json", "--samples", 50, "--limit", 100))
    assert answer.err == ""
    result = answer.json
    assert result.keys() >= KEYS
    assert (result["n"], result["num_samples"], result["latent_dim"]) == (100, 50, 4)
    assert result["units"] == "nats"
    assert result["elbo"] == pytest.approx(-(result["rate"] + result["distortion"]))
    assert result["rate"] > 0
    assert result["elbo"] <= result["log_px"] + 3 * result["log_px_stderr"]
    assert result["posterior_gap"] == pytest.approx(result["log_px"] - result["elbo"])
    assert result["bits_per_dim"] == pytest.approx(-result["log_px"] / (784 * math.log(2)))
    assert 0 < result["log_px_stderr"] < 20
    assert -250 < result["log_px"] < -100, "after a little training on real digits"
    assert 1 <= result["ess_median"] <= 50
    assert 0 < result["active_units"] <= 4
    assert result["likelihood"] == "Bernoulli"
    assert result["is_likelihood"] is True
    assert any("binarised" in note for note in result["notes"])


def test_evaluate_twice_gives_the_same_numbers_and_another_seed_others(small: Path) -> None:
    once = evaluated(small)
    assert evaluated(small) == once
    other = evaluated(small, "--seed", 1)
    assert other["log_px"] != once["log_px"]
    assert other["log_px"] == pytest.approx(once["log_px"], abs=0.5)


def test_evaluate_measures_the_split_and_the_number_asked_for(small: Path) -> None:
    sizes = {"test": 360, "valid": 180, "train": 1257}
    for split, size in sizes.items():
        result = succeed(call("evaluate", small, "--split", split, "--samples", 1, "--json")).json
        assert result["n"] == size
    assert evaluated(small)["n"] == 50
    assert evaluated(small, "--split", "valid")["elbo"] != evaluated(small)["elbo"]


def test_evaluate_prints_a_table_with_the_same_numbers_for_people(small: Path) -> None:
    result = evaluated(small)
    words = succeed(call("evaluate", small, "--limit", 50, "--samples", 20)).words
    assert f"{-result['elbo']:.3f} ± {result['elbo_stderr']:.3f}" in words
    assert f"{-result['log_px']:.3f}" in words
    assert "Note: x is binarised" in words


# Every recipe is trained in test_recipes.py; these say different things of their numbers.
@pytest.mark.parametrize("recipe", ["autoencoder", "tutorial", "conv"])
def test_a_recipe_trains_and_is_evaluated_by_commands(recipe: str, tmp_path: Path) -> None:
    width = {"channels": 4, "features": 16} if recipe == "conv" else {"width": 16}
    path = tmp_path / "run"
    options = {"epochs": 1, "latent_dim": 3, "device": "cpu", **width}
    succeed(
        call(
            *("train", recipe, "--data", "digits", "--out", path, "--json"),
            *(part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", v)),
        )
    )
    result = evaluated(path)
    assert (result["n"], result["latent_dim"]) == (50, 3)
    words = succeed(call("evaluate", path, "--limit", 50, "--samples", 20)).words
    match recipe:
        case "autoencoder":
            for key in ("elbo", "elbo_stderr", "rate", "log_px", "log_px_stderr", "bits_per_dim", "posterior_gap"):
                assert result[key] is None, key
            assert result["distortion"] > 0
            assert result["is_likelihood"] is False
            assert any("no bound" in note for note in result["notes"])
            assert "Note: the posterior is a single point" in words
        case "tutorial":
            assert result["is_likelihood"] is False
            assert result["bits_per_dim"] is None
            assert result["elbo"] == pytest.approx(-(result["rate"] + result["distortion"]))
            assert any("cross-entropy" in note for note in result["notes"])
            assert "Note: the Bernoulli likelihood is evaluated at grey values" in words
        case _:
            assert result["is_likelihood"] is True
            assert "cross-entropy" not in words


def test_beta_is_named_beside_the_numbers(tmp_path: Path) -> None:
    succeed(call(*tiny(tmp_path / "run", beta=4)))
    assert any("beta = 4" in note for note in evaluated(tmp_path / "run")["notes"])


@pytest.mark.parametrize("name", ["x.png", "x.PNG"])
def test_sample_draws_a_grid(first: Path, tmp_path: Path, name: str) -> None:
    answer = succeed(call("sample", first, "--n", 6, "--out", tmp_path / name, "--json"))
    assert answer.json == {"out": str(tmp_path / name), "n": 6}
    picture = pixels(tmp_path / name)
    # 3 columns and 2 rows of 28 pixels with gaps of 2, enlarged 3 times.
    assert picture.shape == (3 * (2 * 30 + 2), 3 * (3 * 30 + 2))
    assert len(np.unique(picture)) > 10


def test_sample_is_the_models_own_and_follows_the_seed(small: Path, tmp_path: Path) -> None:
    drawn = {}
    for name, options in {"a": [], "b": [], "other": ["--seed", 1], "binary": ["--draw"]}.items():
        path = tmp_path / f"{name}.npz"
        succeed(call("sample", small, "--n", 7, "--out", path, *options))
        with np.load(path) as arrays:
            assert arrays.files == ["x"]
            drawn[name] = arrays["x"]
    assert drawn["a"].shape == (7, 1, 8, 8)
    assert np.array_equal(drawn["a"], drawn["b"])
    assert not np.array_equal(drawn["a"], drawn["other"])
    assert set(np.unique(drawn["binary"])) == {0, 1}
    assert np.array_equal(drawn["a"], lb.tasks.sample(lb.load(small), 7).numpy())


def test_reconstruct_puts_examples_above_what_the_model_makes_of_them(first: Path, tmp_path: Path) -> None:
    succeed(call("reconstruct", first, "--n", 5, "--out", tmp_path / "x.png"))
    assert pixels(tmp_path / "x.png").shape == (3 * (2 * 30 + 2), 3 * (5 * 30 + 2))


def test_reconstruct_npz_holds_both(small: Path, tmp_path: Path) -> None:
    succeed(call("reconstruct", small, "--n", 5, "--split", "valid", "--out", tmp_path / "x.npz"))
    with np.load(tmp_path / "x.npz") as arrays:
        assert sorted(arrays.files) == ["reconstruction", "x"]
        x, made = arrays["x"], arrays["reconstruction"]
    assert x.shape == made.shape == (5, 1, 8, 8)
    vae = lb.load(small)
    with torch.no_grad():
        expected = vae.decoder(vae.encoder(torch.from_numpy(x)).mean).mean
    assert np.allclose(made, expected.numpy(), atol=1e-5)


def test_encode_is_what_the_loaded_encoder_says(first: Path, digits: lb.Data, tmp_path: Path) -> None:
    succeed(call("encode", first, "--out", tmp_path / "codes.npz", "--draw"))
    with np.load(tmp_path / "codes.npz") as arrays:
        codes = {name: arrays[name] for name in arrays.files}
    count = len(digits.test)
    assert {k: v.shape for k, v in codes.items()} == {
        "loc": (count, 4),
        "scale": (count, 4),
        "z": (count, 4),
        "label": (count,),
    }
    assert np.array_equal(codes["label"], digits.test.labels.numpy())
    x = digits.binarised(lb.Binarise.DYNAMIC).test.examples(torch.arange(100)).x
    with torch.no_grad():
        q = lb.load(first).encoder(x)
    assert np.allclose(codes["loc"][:100], q.mean.numpy(), atol=1e-4)
    assert np.allclose(codes["scale"][:100], q.stddev.numpy(), atol=1e-4)
    assert np.abs((codes["z"] - codes["loc"]) / codes["scale"]).mean() == pytest.approx(math.sqrt(2 / math.pi), abs=0.1)


def test_encode_csv_has_a_row_an_example(small: Path, tmp_path: Path) -> None:
    for name in ("codes.csv", "codes.npz"):
        succeed(call("encode", small, "--split", "valid", "--out", tmp_path / name))
    with (tmp_path / "codes.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["row", "loc_0", "loc_1", "loc_2", "scale_0", "scale_1", "scale_2", "label"]
    assert [row[0] for row in rows] == [str(i) for i in range(180)]
    with np.load(tmp_path / "codes.npz") as arrays:
        assert np.allclose(np.array(rows, float)[:, 1:4], arrays["loc"])
        assert np.array_equal(np.array(rows)[:, -1].astype(int), arrays["label"])


def test_interpolate_goes_from_one_example_to_the_other(small: Path, tmp_path: Path) -> None:
    options = ["--from", 3, "--to", 9, "--steps", 5]
    succeed(call("interpolate", small, *options, "--out", tmp_path / "line.npz"))
    with np.load(tmp_path / "line.npz") as arrays:
        line = arrays["x"]
    assert line.shape == (5, 1, 8, 8)
    succeed(call("reconstruct", small, "--n", 10, "--out", tmp_path / "x.npz"))
    with np.load(tmp_path / "x.npz") as arrays:
        ends = arrays["reconstruction"][[3, 9]]
    assert np.allclose(line[[0, -1]], ends, atol=1e-5)
    succeed(call("interpolate", small, *options, "--out", tmp_path / "line.png"))
    assert pixels(tmp_path / "line.png").shape == (10 * (10 + 2), 10 * (5 * 10 + 2))


def test_another_source_is_seen_as_in_training(small: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    result = evaluated(small, "--data", tmp_path / "x.npy", "--split", "train")
    assert result["is_likelihood"] is True, "binarised"
    assert result["n"] == 32


def test_help_of_every_verb_shows_an_example_and_needs_no_torch() -> None:
    program = f"""
import sys
from lowerbound.cli import main
for verb in {[[], *([v] for v in VERBS), *(["train", r] for r in RECIPES)]!r}:
    assert main([*verb, "--help"]) == 0, verb
    print("@@")
assert main(["--version"]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    texts = done.stdout.split("@@")
    assert lb.__version__ in texts[-1]
    assert all(verb in texts[0] for verb in VERBS)
    for text in texts[:-1]:
        assert "lowerbound train " in text or "Example: lowerbound " in text, text


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_of_a_recipe_names_every_setting_with_its_default(recipe: str) -> None:
    listed = succeed(call("recipes", "--json")).json[recipe]["settings"]
    words = succeed(call("train", recipe, "--help")).words
    for name in listed:
        assert f"--{name.replace('_', '-')}" in words


def test_lists_are_json_when_asked() -> None:
    assert succeed(call("recipes", "--json")).json.keys() == RECIPES.keys()
    listed = succeed(call("data", "--json")).json
    assert listed["digits"]["at_hand"] is not None
    assert {"mnist", "fashion-mnist", "mnist-5k", "digits"} <= listed.keys()
    assert "mnist-5k" in succeed(call("data")).words


def settings_of(path: Path) -> Any:
    return json.loads((path / "run.json").read_text())["settings"]


def test_a_config_file_sets_options_and_the_command_line_wins(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('data = "digits"\nlatent-dim = 5\nwidth = 24\nepochs = 1\nbinarise = "threshold"\n')
    path = tmp_path / "run"
    succeed(call("train", "mlp", "--config", config, "--out", path, "--latent-dim", 2))
    assert settings_of(path).items() >= {"latent_dim": 2, "width": 24, "binarise": "threshold"}.items()
    path = tmp_path / "again"
    succeed(call("train", "mlp", "--out", path, f"--config={config}"))
    assert settings_of(path)["latent_dim"] == 5


def test_a_recipe_of_the_users_own_trains_and_is_loaded_without_its_code(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "my_recipe.py").write_text('''
from __future__ import annotations
import lowerbound as lb
from lowerbound.recipes import mlp

def mine(data: lb.Data, *, size: int = 3, epochs: int = 1, batch_size: int = 500, lr: float = 1e-3) -> lb.Run:
    """Mine."""
    return mlp(data, latent_dim=size, width=8, epochs=epochs, batch_size=batch_size, lr=lr)
''')
    succeed(run("train", "my_recipe:mine", "--data", "digits", "--size", 2, "--out", there / "run", cwd=here))
    program = """
import importlib.util, torch, lowerbound as lb
assert importlib.util.find_spec("my_recipe") is None
print(lb.load("run").encoder(torch.zeros(1, 1, 8, 8)).mean.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=there, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 2])"
    assert settings_of(there / "run") == {"size": 2, "epochs": 1, "batch_size": 500, "lr": 1e-3}


def test_a_budget_in_minutes_ends_the_training(tmp_path: Path) -> None:
    arguments = [a for a in tiny(tmp_path / "run", minutes=0.001) if a not in ("--epochs", 1)]
    assert succeed(call(*arguments, "--json")).json["seconds"] < 1


def test_a_path_with_blanks_and_letters_of_all_kinds_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "läufe [1]" / "нейро run"
    succeed(call(*tiny(path)))
    answer = succeed(call("sample", path, "--n", 1, "--out", tmp_path / "é [x].png"))
    assert "é [x].png" in answer.words
    assert (tmp_path / "é [x].png").is_file()


def test_a_run_can_be_moved(small: Path, tmp_path: Path) -> None:
    before = evaluated(small)
    moved = small.rename(tmp_path / "moved")
    try:
        assert evaluated(moved) == before
    finally:
        moved.rename(small)


def test_tensorboard_gets_what_metrics_jsonl_has(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    succeed(call(*tiny(run, log="tensorboard")))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    written = [(event.step, event.value) for event in events.Scalars("elbo")]
    assert [step for step, _ in written] == [line["step"] for line in lines]
    assert [value for _, value in written] == pytest.approx([line["elbo"] for line in lines], rel=1e-6)
