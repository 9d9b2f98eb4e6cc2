"""All of a source: `--split all` for every kind of data; new files of one or two examples, which are taken whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command import assert_refused, call, succeed
from PIL import Image

import lowerbound as lb
from lowerbound.cli.saved import open_saved
from lowerbound.data import open_data

KINDS = ("array", "splits", "table", "text", "pictures")
SMALL = ("--epochs", 1, "--latent-dim", 2, "--batch-size", 16, "--device", "cpu")
RECIPES = {
    "table": ("tabular", "--width", 8, "--num-samples", 2),
    "text": ("text",),
    "pictures": ("mlp", "--width", 8, "--size", 8, "--binarise", "none"),
}
RNG = np.random.default_rng(0)


def values(count: int) -> np.ndarray:
    return RNG.normal(size=(count, 4)).astype(np.float32)


def saved(kind: str, path: Path, count: int) -> Path:
    """Saves so many examples as a file of a kind."""
    match kind:
        case "array":
            np.save(found := path.with_suffix(".npy"), values(count))
        case "splits":
            np.savez(found := path.with_suffix(".npz"), x_train=values(count), x_test=values(7))
        case "table":
            rows = [f"{a:.2f},{b:.2f},{'xy'[i % 2]}" for i, (a, b, *_) in enumerate(values(count))]
            (found := path.with_suffix(".csv")).write_text("\n".join(["a,b,c", *rows]))
        case "text":
            words = [RNG.choice(["no", "ra", "li"], 1 + i % 3) for i in range(count)]
            (found := path.with_suffix(".txt")).write_text("\n".join("".join(word) for word in words))
        case _:
            (found := path).mkdir()
            for i in range(count):
                Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8)).save(found / f"{i:03}.png")
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each kind of data the file, of 40 examples, and a run that learned from it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWERBOUND_CACHE", str(folder / "cache"))
        found = {}
        for kind in KINDS:
            data, run = saved(kind, folder / kind, 40), folder / f"{kind}-run"
            recipe, *options = RECIPES.get(kind, ("mlp", "--width", 8))
            succeed(call("train", recipe, "--data", data, "--out", run, *SMALL, *options))
            found[kind] = data, run
        yield found


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOWERBOUND_CACHE", str(tmp_path / "cache"))


def in_order(kind: str, path: Path, run: Path) -> torch.Tensor:
    """The examples of a file in their order, read in another way."""
    match kind:
        case "array":
            return torch.from_numpy(np.load(path))
        case "splits":
            arrays = np.load(path)
            return torch.from_numpy(np.concatenate([arrays["x_train"], arrays["x_test"]]))
        case "table":
            return open_saved(run).view.reading.read(path).x
        case "text":
            reading = open_saved(run).view.reading
            return torch.from_numpy(reading.rows(path.read_text().splitlines())).float()
        case _:
            return torch.stack([torch.tensor(np.array(Image.open(p)))[None] / 255.0 for p in sorted(path.iterdir())])


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_every_kind_of_data_is_scored_and_encoded_in_its_order(kind, runs, tmp_path):
    data, run = runs[kind]
    expected = in_order(kind, data, run)
    whole = open_saved(run).split("all")
    torch.testing.assert_close(whole.examples(torch.arange(len(whole))).x, expected)
    assert len(expected) == (47 if kind == "splits" else 40)
    out = tmp_path / "codes.npz"
    succeed(call("encode", run, "--split", "all", "--out", out))
    with torch.no_grad():
        loc = lb.load(run).encoder(expected).mean
    torch.testing.assert_close(torch.from_numpy(np.load(out)["loc"]), loc, rtol=1e-4, atol=1e-5)
    told = succeed(call("score", run, "--split", "all", "--samples", 3, "--out", tmp_path / "s.csv", "--json")).json
    assert told["n"] == len(expected)
    assert succeed(call("score", run, "--samples", 3, "--out", tmp_path / "s.csv", "--json")).json["n"] < told["n"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_new_file_of_one_or_two_examples_is_taken_whole(kind, count, runs, tmp_path):
    run, out = runs[kind][1], tmp_path / "out.csv"
    if kind == "splits":
        # What it says of splits is kept: seven examples to test on. A new file of the same kind may have none.
        data = saved("splits", tmp_path / "new", count + 1)
        assert succeed(call("encode", run, "--data", data, "--out", out, "--json")).json["n"] == 7
        np.savez(data := tmp_path / "plain.npz", x=values(count))
    else:
        data = saved(kind, tmp_path / "new", count)
    assert succeed(call("encode", run, "--data", data, "--out", out, "--json")).json["n"] == count
    assert len(out.read_text().splitlines()) == count + 1
    assert succeed(call("score", run, "--data", data, "--samples", 3, "--out", out, "--json")).json["n"] == count
    judged = call("evaluate", run, "--data", data, "--samples", 3, "--gap", 0, "--json")
    if count > 1:
        assert succeed(judged).json["n"] == count
    else:
        assert_refused(judged, 2, "at least 2 examples")
    # Splits of their own are still to be had, where there are examples for them.
    assert_refused(call("encode", run, "--data", data, "--split", "test", "--out", out), 3, "3")


def test_the_runs_own_file_is_judged_on_its_test_split_however_it_is_named(runs, monkeypatch):
    data, run = runs["table"]
    own = succeed(call("evaluate", run, "--samples", 3, "--gap", 0, "--json")).json
    monkeypatch.chdir(data.parent)
    named = succeed(call("evaluate", run, "--data", data.name, "--samples", 3, "--gap", 0, "--json")).json
    assert own["n"] == named["n"] == 4
    assert own["log_px"] == named["log_px"]


def test_all_of_a_named_source_is_what_is_learned_from_and_then_what_is_tested_on(runs, tmp_path):
    run = tmp_path / "run"
    succeed(call("train", "mlp", "--data", "digits", "--out", run, *SMALL, "--width", 8))
    saved_run = open_saved(run)
    whole, digits = saved_run.split("all"), open_data("digits")
    assert len(whole) == 1797
    labels = [digits.split(name).labels for name in ("train", "valid", "test")]
    assert torch.equal(whole.labels, torch.cat(labels))
    # Binarised as in training, by a draw of its own that is the same each time.
    x = whole.examples(torch.arange(1797)).x
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(x, open_saved(run).split("all").examples(torch.arange(1797)).x)
    grey = torch.cat(
        [digits.split(name).examples(torch.arange(len(digits.split(name)))).x for name in ("train", "valid")]
    )
    assert (x[: len(grey)] - grey).mean().abs() < 0.01
    told = succeed(
        call("score", run, "--split", "all", "--limit", 20, "--samples", 3, "--out", tmp_path / "s.csv", "--json")
    )
    assert told.json["n"] == 20
    assert saved_run.named(None) == open_saved(run, "mnist-5k").named(None) == "test"


@pytest.mark.parametrize("kind", ["array", "table", "text", "pictures"])
def test_three_examples_are_enough_to_train_and_too_few_to_measure(kind, tmp_path):
    """One is left for each split: nothing has a standard error, and no two stand beside one another."""
    data, options = (
        saved(kind, tmp_path / kind, 3),
        ("--epochs", 1, "--latent-dim", 2, "--batch-size", 1, "--device", "cpu"),
    )
    recipe, *more = RECIPES.get(kind, ("mlp", "--width", 8))
    told = succeed(call("train", recipe, "--data", data, "--out", tmp_path / "run", *options, *more))
    assert "at least 2" in told.words
    assert "lowerbound evaluate" not in told.words
    assert (tmp_path / "run" / "figures" / "latent.png").exists()
    found = succeed(call("train", recipe, "--data", data, "--out", tmp_path / "two", *options, *more, "--json")).json
    assert found["finished"] is True
    assert "valid" not in found
    assert "train" not in found


def test_one_example_to_validate_on_has_the_training_ones_measured(tmp_path):
    data = saved("pictures", tmp_path / "pictures", 12)
    options = ("--epochs", 1, "--latent-dim", 2, "--batch-size", 4, "--device", "cpu", "--width", 8, "--json")
    found = succeed(call("train", "mlp", "--data", data, "--out", tmp_path / "run", *options)).json
    assert found["train"]["n"] == 10
    assert (tmp_path / "run" / "figures" / "reconstructions.png").exists()


def test_labels_may_be_any_whole_numbers(tmp_path):
    """A map of the codes with a colour for each number up to the largest would not fit in memory."""
    np.savez(tmp_path / "x.npz", x=values(40), y=10**12 + np.arange(40) % 30)
    options = ("--epochs", 1, "--latent-dim", 2, "--batch-size", 16, "--device", "cpu", "--width", 8)
    succeed(call("train", "mlp", "--data", tmp_path / "x.npz", "--out", tmp_path / "run", *options))
    assert (tmp_path / "run" / "figures" / "latent.png").exists()


@pytest.mark.parametrize("kind", ["array", "table", "text", "pictures"])
@pytest.mark.parametrize("other", ["array", "table", "pictures"])
def test_a_source_of_another_kind_is_refused_with_both_kinds_named(kind, other, runs, tmp_path):
    if kind == other or (kind, other) == ("text", "table"):  # which has lines
        return
    source = saved(other, tmp_path / "other", 20)
    found = call("encode", runs[kind][1], "--data", source, "--out", tmp_path / "codes.csv")
    if (kind, other) == ("text", "array"):
        assert_refused(found, 3, "NUL byte")
    else:
        kinds = {"array": "NumPy", "table": "tables", "text": "text", "pictures": "pictures"}
        is_folder = "pictures" in (kind, other)
        what = ("a folder" if other == "pictures" else "a file") if is_folder else f"a {source.suffix} file"
        assert_refused(found, 3, f"{source} is {what}", f"learned from {'folders of ' * (kind == 'pictures')}")
        assert kinds[kind] in found.err
    for verb in ("score", "reconstruct", "interpolate"):
        again = call(verb, runs[kind][1], "--data", source, "--out", tmp_path / "out.npz")
        assert_refused(again, 3, str(source))


@pytest.mark.parametrize("verb", ["encode", "score", "reconstruct", "interpolate", "evaluate"])
def test_examples_of_another_shape_are_refused_by_every_verb(verb, runs, tmp_path):
    np.save(tmp_path / "x.npy", values(9)[:, :3])
    out = () if verb == "evaluate" else ("--out", tmp_path / "out.npz")
    assert_refused(call(verb, runs["array"][1], "--data", tmp_path / "x.npy", *out), 2, "(4,)", "(3,)")
