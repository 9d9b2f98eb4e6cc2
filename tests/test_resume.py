"""Runs that are killed, stopped, refused by the disk or diverge: what was saved is whole, and going on is exact."""

import itertools
import json
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from command import answer_of, assert_refused, call, start, succeed, tiny, wait_until

import lowerbound as lb
from lowerbound.checkpoint import RunFolder
from lowerbound.data import open_data
from lowerbound.errors import DivergedError
from lowerbound.experiment import Experiment, Update, prepare
from lowerbound.objectives import Terms
from lowerbound.recipes import mlp

CPU = torch.device("cpu")
# 5 updates an epoch.
SETTINGS: dict[str, Any] = {"latent_dim": 2, "width": 8, "epochs": 3, "batch_size": 256, "lr": 0.01}
# 400 updates, long enough to be interrupted twice.
LONG = {"epochs": 10, "batch_size": 32, "save_every": 0.05}


def experiment(path: Path, *, save_every: float = 1e9, objective: Any = None, **changes: Any) -> Experiment:
    run = prepare(mlp, open_data("digits"), SETTINGS | changes)
    run = run if objective is None else replace(run, objective=objective)
    path.mkdir(exist_ok=True)
    return Experiment(run, RunFolder(path), device=CPU, save_every=save_every)


def carry_out(it: Experiment, *, stop_at: int = 0) -> Experiment:
    for update in it.updates():
        it.stop = update.step.step == stop_at
    return it


def begun(it: Experiment) -> Experiment:
    it.begin()
    return it


def resumed(it: Experiment) -> Experiment:
    it.resume()
    return it


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def content_of(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def assert_same_run(a: Path, b: Path) -> None:
    assert_equal(weights_of(a), weights_of(b))
    assert metrics_of(a) == metrics_of(b)


def test_an_experiment_begins_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    it = Experiment(
        prepare(mlp, open_data("digits"), SETTINGS), RunFolder(tmp_path / "new" / "run"), device=CPU, save_every=1e9
    )
    it.begin()
    carry_out(it)
    assert lb.load(tmp_path / "new" / "run").latent_shape == (2,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A training of 15 updates that nothing interrupted."""
    return carry_out(begun(experiment(tmp_path_factory.mktemp("runs") / "whole")))


@pytest.mark.parametrize("stops", [[0], [1], [3], [5], [7], [14], [2, 6, 10, 11]])
def test_a_stopped_training_goes_on_exactly(tmp_path: Path, whole: Experiment, stops: list[int]) -> None:
    path = tmp_path / "run"
    begin: Callable[[Experiment], Experiment] = begun
    for stop in stops:
        it = begin(experiment(path))
        if stop:
            carry_out(it, stop_at=stop)
            assert it.stopped
            assert it.state.step == stop
            assert not (path / "manifest.json").exists()
        begin = resumed
    last = carry_out(resumed(experiment(path)))
    assert not last.stopped
    assert last.state.step == 15
    assert_same_run(path, whole.folder.path)
    assert_equal(last.state.tensors(), whole.state.tensors())
    assert any("exp_avg_sq" in name for name in last.state.tensors())
    assert any(name.startswith("average.") for name in last.state.tensors())


def test_what_was_not_saved_is_done_again_and_logged_once(tmp_path: Path, whole: Experiment) -> None:
    path = tmp_path / "run"
    # Killed after 8 updates, the last checkpoint being that of the beginning.
    for _ in itertools.islice(begun(experiment(path)).updates(), 8):
        pass
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "ep')
    carry_out(resumed(experiment(path)))
    assert_same_run(path, whole.folder.path)


@pytest.mark.parametrize("stop", [2, 5, 17, 30])
def test_patience_goes_on_exactly_and_the_best_weights_survive(tmp_path: Path, stop: int) -> None:
    options = {"epochs": 40, "patience": 2, "lr": 0.5}
    patient = carry_out(begun(experiment(tmp_path / "whole", **options)))
    assert patient.state.step < 200, "patience ended this training"
    assert not patient.stopped
    path = tmp_path / "run"
    carry_out(begun(experiment(path, **options)), stop_at=min(stop, patient.state.step - 1))
    last = carry_out(resumed(experiment(path, **options)))
    assert_same_run(path, patient.folder.path)
    assert last.selection.weights is not None
    assert patient.selection.weights is not None
    assert_equal(last.selection.weights, patient.selection.weights)
    assert_equal(weights_of(path), patient.selection.weights)


def test_a_training_that_patience_ended_stays_ended(tmp_path: Path) -> None:
    options = {"epochs": 40, "patience": 2, "lr": 0.5}
    ended = carry_out(begun(experiment(tmp_path / "run", **options)))
    before, lines = weights_of(tmp_path / "run"), metrics_of(tmp_path / "run")
    again = carry_out(resumed(experiment(tmp_path / "run", **options)))
    assert again.state.step == ended.state.step
    assert metrics_of(tmp_path / "run") == lines
    assert_equal(weights_of(tmp_path / "run"), before)


def test_only_the_newest_checkpoints_are_kept_and_each_is_whole(tmp_path: Path) -> None:
    carry_out(begun(experiment(tmp_path / "run", save_every=0)))
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000000014", "step-000000015"]


def test_a_checkpoint_that_was_being_written_when_killed_is_no_checkpoint(tmp_path: Path, whole: Experiment) -> None:
    path = tmp_path / "run"
    carry_out(begun(experiment(path)), stop_at=7)
    half = path / "checkpoints" / ".tmp-000000009"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    (path / "checkpoints" / "step-000000012").mkdir()
    carry_out(resumed(experiment(path)))
    assert not half.exists()
    assert_same_run(path, whole.folder.path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    succeed(call(*tiny(path, **LONG)))
    return path


def latest_step(run: Path) -> int:
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=0)


@pytest.mark.parametrize("numbers", [[signal.SIGKILL, signal.SIGKILL], [signal.SIGTERM, signal.SIGINT]])
def test_a_run_interrupted_twice_ends_as_if_nothing_had_happened(
    tmp_path: Path, uninterrupted: Path, numbers: list[signal.Signals]
) -> None:
    path = tmp_path / "run"
    for number in numbers:
        before = latest_step(path)
        process = start(*tiny(path, **LONG), "--resume", "--json")
        wait_until(lambda before=before: latest_step(path) > before, process)
        process.send_signal(number)
        answer = answer_of(process)
        assert answer.status == {signal.SIGTERM: 75, signal.SIGINT: 130}.get(number, -number), answer.err
        assert "Traceback" not in answer.err
        assert not (path / "manifest.json").exists(), "it was not at its end"
        assert lb.load(path).latent_shape == (3,)
        if number != signal.SIGKILL:
            assert answer.json == {"run": str(path), "finished": False, "step": latest_step(path)}
            assert "The same command with --resume goes on" in answer.err
    answer = succeed(call(*tiny(path, **LONG), "--resume"))
    assert "Going on from update" in answer.err
    assert_same_run(path, uninterrupted)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    succeed(call(*tiny(path)))
    return path


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 2}, {"latent_dim": 4}, {"lr": 0.1}, {"seed": 1}, {"valid": 100}, {"beta": 2}, {"data": "mnist-5k"}],
    ids=lambda changes: next(iter(changes)),
)
def test_resuming_with_other_settings_is_refused_and_touches_nothing(finished: Path, changes: dict[str, Any]) -> None:
    before = content_of(finished)
    assert_refused(call(*tiny(finished, **changes), "--resume"), 2, "other settings or other data", " was ", " is now ")
    assert content_of(finished) == before


def test_resuming_with_another_recipe_is_refused_and_touches_nothing(finished: Path) -> None:
    before = content_of(finished)
    assert_refused(call("train", "tutorial", *tiny(finished)[2:], "--resume"), 2, "other settings")
    assert content_of(finished) == before


def test_resuming_a_finished_run_leaves_its_weights_and_metrics(finished: Path) -> None:
    before = content_of(finished)
    succeed(call(*tiny(finished), "--resume"))
    after = content_of(finished)
    for name in ("model.safetensors", "metrics.jsonl", "run.json", "manifest.json"):
        assert after[name] == before[name]


def test_resume_begins_a_run_where_there_is_none(tmp_path: Path) -> None:
    answer = succeed(call(*tiny(tmp_path / "new" / "run"), "--resume", "--json"))
    assert answer.json["step"] == 5
    assert "beginning" in answer.err


def test_resume_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert_refused(call(*tiny(tmp_path), "--resume"), 2, "exists already")
    assert content_of(tmp_path) == {"thesis.tex": b"years of work"}


def test_overwrite_begins_anew_and_leaves_what_is_not_the_runs(finished: Path) -> None:
    (finished / "notes.txt").write_text("mine")
    answer = succeed(call(*tiny(finished, epochs=2), "--overwrite", "--json"))
    assert answer.json["step"] == 10
    assert metrics_of(finished)[0]["step"] == 1
    assert (finished / "notes.txt").read_text() == "mine"


def test_a_full_disk_is_exit_6_and_leaves_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "run"
    carry_out(begun(experiment(path, epochs=20)), stop_at=3)
    before = {name: content for name, content in content_of(path).items() if name.startswith("checkpoints")}
    size = max(map(len, before.values()))

    def fill_the_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    options = SETTINGS | {"epochs": 20, "save_every": 0}
    assert_refused(
        answer_of(start(*tiny(path, **options), "--resume", preexec_fn=fill_the_disk)),
        6,
        "Free some space",
        "--resume",
        notes=1,
    )
    after = content_of(path)
    assert {name: content for name, content in after.items() if name.startswith("checkpoints")} == before
    assert not [name for name in path.rglob("*") if "tmp" in name.name]
    carry_out(resumed(experiment(path, epochs=20)))


def test_divergence_is_exit_5_and_the_last_checkpoint_is_from_before(tmp_path: Path) -> None:
    path = tmp_path / "run"
    answer = call(*tiny(path, epochs=200, depth=6, width=64, lr=100, average=0, save_every=0))
    assert_refused(answer, 5, "Lower", str(path), "intact")
    weights = lb.load(path).state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


class Breaks(lb.objectives.Objective):
    """The ELBO until an update at which its value, or only its gradient, is no number."""

    def __init__(self, at: int, what: str) -> None:
        self.at = at
        self.what = what

    def check(self, vae: lb.VAE) -> None:
        """Accepts any model."""

    def __call__(self, vae: lb.VAE, x: torch.Tensor, step: int | None = None) -> Terms:
        terms = lb.ELBO()(vae, x, step)
        if step is None or step + 1 < self.at:
            return terms
        if self.what == "loss":
            return replace(terms, loss=terms.loss * float("nan"))
        # The square root has no derivative at 0: 0 * inf.
        return replace(terms, loss=terms.loss + (0 * terms.loss).clamp(min=0).sqrt())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_update_that_would_break_the_weights_is_not_made(tmp_path: Path, what: str) -> None:
    it = begun(experiment(tmp_path / "run", save_every=0, objective=Breaks(7, what)))
    with pytest.raises(DivergedError, match="7"):
        carry_out(it)
    assert it.state.step == 6
    assert all(torch.isfinite(tensor).all() for tensor in it.state.tensors().values())
    saved = RunFolder(tmp_path / "run").latest_checkpoint()
    assert saved is not None
    assert saved[1]["step"] == 6
    assert all(torch.isfinite(tensor).all() for tensor in saved[0].values())


def test_what_is_drawn_between_updates_changes_nothing(tmp_path: Path, whole: Experiment) -> None:
    it = begun(experiment(tmp_path / "run"))
    update: Update
    for update in it.updates():
        torch.randn(update.step.step)
        torch.manual_seed(1)
    assert_same_run(tmp_path / "run", whole.folder.path)
