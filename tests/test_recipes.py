"""Every recipe on real digits: it trains, is judged, generates, and comes back from its folder unchanged."""

import inspect
import math
from pathlib import Path

import pytest
import torch

import lowerbound as lb
from lowerbound.checkpoint import RunFolder
from lowerbound.experiment import Experiment, notes_of, prepare
from lowerbound.recipes import RECIPES

CPU = torch.device("cpu")
# Sizes alone, where a recipe has them: with these it is the same recipe, an epoch of which takes a second or two.
SMALL = {
    "epochs": 1,
    "latent_dim": 4,
    "width": 32,
    "channels": 4,
    "features": 16,
    "flow_width": 8,
    "num_components": 20,
    "latent_dims": (3, 2),
    "state_dim": 16,
    "positions": 4,
    "prior_width": 16,
}
# What the numbers of a recipe are not, and the words that say so.
NO_BOUND = {"autoencoder": "a single point"}
NO_LIKELIHOOD = {"tutorial": "cross-entropy", "fast": "cross-entropy", **NO_BOUND}


# Tested on data of their own kind.
ELSEWHERE = {
    "tabular": "tests/test_tables.py",
    "text": "tests/test_text.py",
    "camera": "tests/test_supervised.py",
}


@pytest.fixture(scope="module")
def few() -> lb.Data:
    """The 5,000 real digits that need no network, whatever else is at hand."""
    return lb.open_data("mnist-5k")


def settings_of(recipe) -> dict[str, int]:
    settings = inspect.signature(recipe).parameters
    small = {name: size for name, size in SMALL.items() if name in settings}
    # The largest batches would leave an epoch of so few digits with no updates to speak of.
    return small | ({"batch_size": 128} if settings["batch_size"].default > 256 else {})


def judged(vae: lb.VAE, run: lb.Run, notes: tuple[str, ...]):
    """Everything that is asked of a model: its numbers, samples, reconstructions and codes."""
    test = run.data.test
    batch = test.examples(torch.arange(6))
    tensors = [lb.sample(vae, 3), lb.sample(vae, 3, draw=True), lb.reconstruct(vae.given(batch.label), batch.x)]
    tensors += lb.encode(vae, test, index=torch.arange(6)).values()
    return lb.evaluate(vae, test, num_samples=5, limit=40, notes=notes), tensors


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ELSEWHERE])
def test_a_recipe_trains_on_digits_and_is_reloaded_with_the_same_numbers(name, few, tmp_path):
    run = prepare(RECIPES[name], few, settings_of(RECIPES[name]))
    folder = RunFolder(tmp_path / "run")
    experiment = Experiment(run, folder, device=CPU)
    experiment.begin()
    for _ in experiment.updates():
        pass
    saved = folder.read()
    assert saved.finished
    lines = folder.read_metrics()
    assert lines[-1]["distortion"] < lines[0]["distortion"]
    notes = notes_of(saved.record)
    with experiment.state.averaged() as vae:
        expected, drawn = judged(vae, run, notes)
    found, again = judged(lb.load(folder.path), run, notes)
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(again, drawn, strict=True))
    assert all(t.isfinite().all() for t in drawn)
    assert drawn[0].shape[1:] == drawn[2].shape[1:] == (1, 28, 28)
    assert_means_what_it_says(name, found)


def assert_means_what_it_says(name: str, result) -> None:
    assert math.isfinite(result.distortion)
    assert result.is_likelihood == (name not in NO_LIKELIHOOD)
    assert (result.bits_per_dim is not None) == result.is_likelihood
    assert name not in NO_LIKELIHOOD or any(NO_LIKELIHOOD[name] in note for note in result.notes)
    if name in NO_BOUND:
        assert result.elbo is result.rate is result.log_px is result.posterior_gap is None
        return
    assert result.elbo == pytest.approx(-result.rate - result.distortion)
    assert result.log_px >= result.elbo - 3 * result.log_px_stderr


def test_the_recipes_that_are_named_here_are_there():
    assert {*NO_LIKELIHOOD, *ELSEWHERE} <= set(RECIPES)
    assert all((Path(__file__).parent.parent / file).is_file() for file in ELSEWHERE.values())
