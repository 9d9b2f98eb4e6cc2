"""Models of discrete codes in training: exact resume, the commands, what evaluate says."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import assert_refused, call, succeed
from torch import Tensor

import lowerbound as lb
from lowerbound.checkpoint import RunFolder
from lowerbound.evaluation import evaluate
from lowerbound.experiment import Experiment, prepare
from lowerbound.metrics import codebook_usage
from lowerbound.recipes import fsq, vq
from lowerbound.training import Training, train

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"positions": 4, "width": 16, "prior_width": 8, "prior_depth": 1, "epochs": 3}


def experiment(path: Path, **changes: Any) -> Experiment:
    run = prepare(vq, lb.open_data("digits"), SETTINGS | {"num_codes": 16, "code_dim": 4} | changes)
    path.mkdir(exist_ok=True)
    return Experiment(run, RunFolder(path), device=CPU, save_every=1e9)


def test_a_stopped_training_goes_on_exactly_with_its_codebook(tmp_path):
    whole = experiment(tmp_path / "whole")
    whole.begin()
    assert len(list(whole.updates())) == 15
    stopped = experiment(tmp_path / "run")
    stopped.begin()
    for update in stopped.updates():
        stopped.stop = update.step.step == 7
    assert stopped.stopped
    resumed = experiment(tmp_path / "run")
    resumed.resume()
    list(resumed.updates())
    ours, theirs = resumed.state.tensors(), whole.state.tensors()
    assert ours.keys() == theirs.keys() >= {"model.encoder.head.codebook", "model.encoder.head.usage"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("recipe", [vq, fsq])
def test_training_raises_the_bound_and_uses_the_codes(recipe):
    run = prepare(recipe, lb.open_data("digits"), SETTINGS | {"width": 64, "epochs": 10, "batch_size": 64})
    history = lb.fit(run.vae, run.data, run.objective, run.training, device=CPU)
    assert history[-1]["valid_elbo"] > history[0]["valid_elbo"] + 5
    codes = lb.encode(run.vae, run.data.valid)["code"]
    usage = codebook_usage(codes, run.vae.encoder.head.num_codes)
    assert usage.perplexity > 10
    assert usage.active == 4
    uniform = 4 * math.log(run.vae.encoder.head.num_codes)
    assert history[-1]["valid_rate"] < uniform - 0.5, "the prior knows more than a uniform one"


def test_a_training_is_a_function_of_its_seed():
    def once() -> dict[str, Tensor]:
        run = prepare(vq, lb.open_data("digits"), SETTINGS | {"epochs": 1})
        for _ in train(run.vae, run.data.train, run.objective, Training(epochs=1, batch_size=256), device=CPU):
            torch.rand(3)
        return {k: v.clone() for k, v in run.vae.state_dict().items()}

    first, second = once(), once()
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of each recipe, and one on a grid, by the command line."""
    folder, runs = tmp_path_factory.mktemp("codes"), {}
    shared = ("--data", "digits", "--epochs", 1, "--device", "cpu", "--prior-width", 16)
    for name, more in {
        "vq": ("--width", 32, "--positions", 4, "--num-codes", 16),
        "fsq": ("--width", 32, "--positions", 4, "--levels", 5, "--levels", 4),
        "grid": ("--halvings", 1, "--channels", 8, "--num-codes", 16),
    }.items():
        runs[name] = folder / name
        succeed(call("train", "fsq" if name == "fsq" else "vq", *shared, *more, "--out", runs[name]))
    return runs


POSITIONS = {"vq": (4, 16), "fsq": (4, 2), "grid": (16, 16)}


@pytest.mark.parametrize("name", POSITIONS)
def test_evaluate_says_what_the_bound_is_and_how_codes_are_used(trained, name):
    found = succeed(call("evaluate", trained[name], "--samples", 50, "--limit", 100, "--json")).json
    assert found["log_px"] > found["elbo"] - 0.1, "log_px may lose log(1 + p(z_q) / 9) to the mixture"
    assert found["posterior_gap"] == pytest.approx(found["log_px"] - found["elbo"])
    assert math.isclose(found["elbo"], -found["rate"] - found["distortion"], rel_tol=1e-9)
    assert found["num_samples"] == 50
    assert found["khat_bad"] is found["ess_median"] is found["sweep"] is found["split_gap"] is None
    assert (found["num_codes"], found["split_n"]) == (lb.load(trained[name]).encoder.head.num_codes, 0)
    assert found["is_likelihood"]
    assert found["latent_dim"] == POSITIONS[name][0]
    assert 0 <= found["active_units"] <= found["latent_dim"]
    assert any("the ELBO; log p(x) is bounded by those and 5 of the 50 draws from" in note for note in found["notes"])
    assert not any("not known for" in note for note in found["notes"])
    assert any("perplexity" in note for note in found["notes"])
    shown = succeed(call("evaluate", trained[name], "--limit", 20)).words
    assert "perplexity" in shown
    assert "positions whose code varies" in shown
    assert "effective draws" not in shown
    assert "components" not in shown
    assert "with 100 draws of the codes and the prior" in shown
    few = succeed(call("evaluate", trained[name], "--samples", 1, "--limit", 20, "--json")).json
    assert math.isclose(few["log_px"], few["elbo"], rel_tol=1e-7)
    assert not any("how to look for the best" in note for note in few["notes"])
    assert_refused(call("evaluate", trained[name], "--gap", 1), 2, "--gap 1")


@pytest.mark.parametrize("name", POSITIONS)
def test_the_commands_work_on_codes(trained, name, tmp_path):
    run = trained[name]
    succeed(call("sample", run, "--n", 3, "--out", tmp_path / "s.npz"))
    x = np.load(tmp_path / "s.npz")["x"]
    assert x.shape == (3, 1, 8, 8)
    assert ((x >= 0) & (x <= 1)).all()
    succeed(call("reconstruct", run, "--n", 4, "--out", tmp_path / "r.npz"))
    succeed(call("interpolate", run, "--from", 0, "--to", 1, "--steps", 5, "--out", tmp_path / "i.npz"))
    ends = np.load(tmp_path / "i.npz")["x"][[0, -1]]
    assert np.allclose(ends, np.load(tmp_path / "r.npz")["reconstruction"][:2], atol=1e-5)
    succeed(call("encode", run, "--out", tmp_path / "e.npz"))
    encoded = np.load(tmp_path / "e.npz")
    vae = lb.load(run)
    assert encoded["loc"].shape[1:] == vae.latent_shape == POSITIONS[name]
    assert (encoded["scale"] == 0).all()
    assert encoded["code"].dtype == np.int64
    vectors = vae.encoder.head.vectors_of(torch.from_numpy(encoded["code"]))
    assert np.array_equal(vectors.detach().numpy(), encoded["loc"])
    succeed(call("encode", run, "--out", tmp_path / "e.csv"))
    assert "code_3" in (tmp_path / "e.csv").read_text().splitlines()[0]


def test_compare_holds_codes_against_codes(trained):
    found = succeed(call("compare", trained["vq"], trained["fsq"], "--limit", 50, "--json")).json
    for name in ("elbo", "log_px"):
        first, second = (one[name] for one in found["evaluations"])
        assert found[f"{name}_difference"][1] == pytest.approx(second - first)


def test_a_table_is_coded_by_an_mlp_and_refused_a_grid(tmp_path):
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32))
    shared = ("--data", tmp_path / "table.npy", "--epochs", 1, "--width", 8, "--positions", 2, "--batch-size", 64)
    succeed(call("train", "vq", *shared, "--out", tmp_path / "run"))
    assert evaluate(lb.load(tmp_path / "run"), lb.open_data(tmp_path / "table.npy").test).latent_dim == 2
    on_grid = call("train", "vq", *shared, "--halvings", 2, "--out", tmp_path / "no")
    assert_refused(on_grid, 2, "channels, height, width")
