"""Damaged and hostile run folders: refused with a `CheckpointError`, whatever is wrong with them."""

import contextlib
import hashlib
import json
import math
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from command import assert_refused, call

import lowerbound as lb
from lowerbound.checkpoint import RunFolder, build_model
from lowerbound.data import open_data
from lowerbound.errors import CheckpointError
from lowerbound.experiment import Experiment, prepare
from lowerbound.recipes import conv, mlp

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"latent_dim": 2, "width": 8, "epochs": 1, "batch_size": 400}
HUGE = 10**12


def train(path: Path, recipe: Callable[..., Any] = mlp, stop_at: int = 0, **settings: Any) -> Path:
    folder = RunFolder(path)
    experiment = Experiment(prepare(recipe, open_data("digits"), settings), folder, device=CPU)
    with folder.locked():
        experiment.begin()
        for update in experiment.updates():
            experiment.stop = update.step.step == stop_at
    return path


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "finished", **SMALL)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "stopped", stop_at=2, **SMALL)


@pytest.fixture(scope="module")
def conv_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"latent_dim": 2, "channels": 2, "features": 8, "epochs": 1, "batch_size": 1000}
    return train(tmp_path_factory.mktemp("runs") / "conv", conv, **settings)


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may damage."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """A run stopped after 2 updates that a test may damage."""
    return shutil.copytree(stopped_run, tmp_path / "run")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def write_weights(run: Path, weights: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(weights, run / "model.safetensors")
    sign(run)


def record_of(run: Path) -> Any:
    return json.loads((run / "run.json").read_text())


def write_record(run: Path, record: Any) -> None:
    (run / "run.json").write_text(record if isinstance(record, str) else json.dumps(record))
    sign(run)


def sign(run: Path) -> None:
    """Makes the checksums right again, as whoever writes a hostile run would."""
    names = ("run.json", "model.safetensors")
    digests = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}
    (run / "manifest.json").write_text(json.dumps({"schema": 1, "sha256": digests}))


def same_model(a: lb.VAE, b: lb.VAE) -> bool:
    theirs = b.state_dict()
    same_weights = all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())
    return str(a) == str(b) and same_weights


def places(size: int, count: int) -> list[int]:
    return sorted({round(i * (size - 1) / (count - 1)) for i in range(count)})


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_the_undamaged_runs_load(finished: Path, stopped_run: Path, conv_run: Path) -> None:
    for run in (finished, stopped_run, conv_run):
        assert not lb.load(run).training
    sign(finished)
    assert same_model(lb.load(finished), lb.load(finished))


@pytest.mark.parametrize("name", ["model.safetensors", "run.json", "manifest.json"])
def test_a_file_cut_short_is_refused(finished: Path, name: str) -> None:
    whole = (finished / name).read_bytes()
    # Without the newline at its end, JSON is whole.
    for length in places(len(whole) - 1, 12):
        (finished / name).write_bytes(whole[:length])
        if name == "manifest.json" and length == len(whole) - 1:
            continue
        with pytest.raises(CheckpointError, match=r"run"):
            lb.load(finished)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_cut_short_is_refused(stopped: Path, name: str) -> None:
    path = sorted((stopped / "checkpoints").iterdir())[-1] / name
    whole = path.read_bytes()
    for length in places(len(whole) - 2, 6):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"step-"):
            lb.load(stopped)


@pytest.mark.parametrize("name", ["model.safetensors", "run.json"])
def test_one_flipped_bit_is_noticed(finished: Path, name: str) -> None:
    whole = (finished / name).read_bytes()
    for i, place in enumerate(places(len(whole), 150)):
        (finished / name).write_bytes(flipped(whole, place, i % 8))
        with pytest.raises(CheckpointError):
            lb.load(finished)


def test_one_flipped_bit_in_the_manifest_is_noticed_or_harmless(finished: Path) -> None:
    good, path = lb.load(finished), finished / "manifest.json"
    whole = path.read_bytes()
    refused = 0
    for i, place in enumerate(places(len(whole), 150)):
        path.write_bytes(flipped(whole, place, i % 8))
        try:
            assert same_model(lb.load(finished), good)
        except CheckpointError:
            refused += 1
    assert refused > 75


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_one_flipped_bit_in_a_checkpoint_is_noticed(stopped: Path, name: str) -> None:
    path = sorted((stopped / "checkpoints").iterdir())[-1] / name
    whole = path.read_bytes()
    for i, place in enumerate(places(len(whole), 50)):
        path.write_bytes(flipped(whole, place, i % 8))
        with pytest.raises(CheckpointError, match=name):
            lb.load(stopped)


def test_one_flipped_bit_in_the_record_of_an_unfinished_run_is_noticed_or_harmless(stopped: Path) -> None:
    good, path = lb.load(stopped), stopped / "run.json"
    whole = path.read_bytes()
    description = whole.index(b'"model"'), whole.index(b'"objective"')
    changed = []
    for i, place in enumerate(range(*description, 3)):
        path.write_bytes(damaged := flipped(whole, place, i % 8))
        with contextlib.suppress(CheckpointError):
            if not same_model(lb.load(stopped), good):
                changed.append(damaged[place - 20 : place + 20])
    assert not changed


@pytest.mark.parametrize("name", ["model.safetensors", "run.json"])
def test_a_missing_file_is_refused(finished: Path, name: str) -> None:
    (finished / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        lb.load(finished)


def test_a_damaged_run_is_exit_4(finished: Path, tmp_path: Path) -> None:
    path = finished / "model.safetensors"
    path.write_bytes(flipped(path.read_bytes(), 1000, 3))
    for verb in (["evaluate"], ["sample", "--out", tmp_path / "x.png"], ["encode", "--out", tmp_path / "x.npz"]):
        assert_refused(call(verb[0], finished, *verb[1:]), 4, "model.safetensors", "sha256")
    assert not list(tmp_path.glob("x.*"))


def test_a_pickle_is_never_executed(finished: Path, stopped_twin: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (sentinel,)

    content = pickle.dumps(Payload())
    (finished / "model.safetensors").write_bytes(content)
    sign(finished)
    with pytest.raises(CheckpointError, match="safetensors"):
        lb.load(finished)
    checkpoint = sorted((stopped_twin / "checkpoints").iterdir())[-1]
    (checkpoint / "state.safetensors").write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["sha256"]["state.safetensors"] = hashlib.sha256(content).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="safetensors"):
        lb.load(stopped_twin)
    assert not sentinel.exists()
    pickle.loads(content)
    assert sentinel.exists(), "the payload does what it should"


@pytest.fixture
def stopped_twin(stopped_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped_run, tmp_path / "stopped")


def _without_one(weights: dict[str, torch.Tensor], name: str) -> None:
    del weights[name]


def _with_one_more(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name + ".more"] = torch.zeros(2)


def _transposed(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name] = weights[name].T.contiguous()


def _longer(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name] = torch.cat([weights[name], weights[name][:1]])


def _with_a_nan(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name].view(-1)[-1] = math.nan


def _with_an_infinity(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name].view(-1)[0] = -math.inf


def _of_integers(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name] = weights[name].to(torch.int32)


def _of_half_precision(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name] = weights[name].to(torch.float16)


@pytest.mark.parametrize(
    "change",
    [
        _without_one,
        _with_one_more,
        _transposed,
        _longer,
        _with_a_nan,
        _with_an_infinity,
        _of_integers,
        _of_half_precision,
    ],
)
def test_tensors_that_are_not_the_models_are_refused_by_name(
    finished: Path, change: Callable[[dict[str, torch.Tensor], str], None]
) -> None:
    weights = weights_of(finished)
    name = next(k for k, v in weights.items() if v.ndim == 2 and v.shape[0] != v.shape[1])
    change(weights, name)
    write_weights(finished, weights)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        lb.load(finished)


@pytest.mark.parametrize("versions", [{"lowerbound": "99.0"}, None, [], "x"])
def test_a_newer_schema_is_refused_with_the_version_that_wrote_it(finished: Path, versions: object) -> None:
    write_record(finished, record_of(finished) | {"schema": 2, "versions": versions})
    with pytest.raises(CheckpointError, match=r"schema 2.*99\.0" if isinstance(versions, dict) else "schema 2"):
        lb.load(finished)


def test_a_model_of_terabytes_is_refused_at_once(finished: Path) -> None:
    write_record(finished, json.loads(json.dumps(record_of(finished)).replace("[2]", f"[{HUGE}]")))
    assert str(HUGE) in (finished / "run.json").read_text()
    began = time.monotonic()
    with pytest.raises(CheckpointError):
        lb.load(finished)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"model":' * 100_000, '{"schema": 1, "model": ' + "[" * 800 + "]" * 800 + "}"]
)
def test_json_nested_without_end_is_refused(finished: Path, text: str) -> None:
    write_record(finished, text)
    with pytest.raises(CheckpointError):
        lb.load(finished)


@pytest.mark.parametrize("text", ["", "null", "[]", "1", '{"schema": 1}', '{"schema": ' + "9" * 5000 + "}", "\ud800"])
def test_json_that_is_no_record_is_refused(finished: Path, text: str) -> None:
    (finished / "run.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    sign(finished)
    with pytest.raises(CheckpointError):
        lb.load(finished)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "pathlib.Path",
        "torch.nn.modules.linear.Linear",
        "lowerbound.cli.app.main",
        "lowerbound.__main__.run",
        "lowerbound.checkpoint.RunFolder",
        "lowerbound.trackers.TensorBoard",
        "lowerbound.recipes.os.system",
        "lowerbound..VAE",
        "lowerbound.nosuch.Part",
        "",
        "VAE",
        7,
        None,
        ["lowerbound.model.VAE"],
    ],
)
def test_a_class_that_is_no_part_of_a_model_is_refused(
    finished: Path, name: object, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in ([], ["encoder"], ["encoder", "network"], ["encoder", "network", "activation"]):
        record = record_of(finished)
        part = record["model"]
        for key in path:
            part = part[key]
        part["class"] = name
        write_record(finished, record)
        with pytest.raises(CheckpointError):
            lb.load(finished)
    # Nor may the search for it have run anything.
    assert capfd.readouterr() == ("", "")


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(tree, dict | list):
        yield path
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, (*path, key))
    else:
        yield path


@pytest.mark.parametrize("recipe", ["mlp", "conv"])
def test_a_description_with_any_value_replaced_is_refused_or_builds_quickly(
    finished_run: Path, conv_run: Path, recipe: str, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run if recipe == "mlp" else conv_run, tmp_path / "run")
    whole = record_of(run)
    hostile = (-1, 0, HUGE, 1 << 62, True, 0.5, "x", "../../x", [], [0], [HUGE, HUGE], {}, None)
    failed: list[str] = []
    refused, weights, began = 0, weights_of(run), time.monotonic()
    for path in list(_leaves(whole["model"])):
        for value in hostile:
            record = json.loads(json.dumps(whole))
            part = record
            for key in ("model", *path)[:-1]:
                part = part[key]
            part[("model", *path)[-1]] = value
            try:
                assert isinstance(build_model(record, weights, run), lb.VAE)
            except CheckpointError:
                refused += 1
            except Exception as error:
                failed.append(f"{'.'.join(map(str, path))} = {value!r}: {error!r}")
    assert not failed, "\n".join(failed)
    assert refused > 100
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("key", ["data", "model", "objective"])
@pytest.mark.parametrize("value", [None, {}, [], "x", {"class": "lowerbound.priors.StandardNormal", "latent_dim": 2}])
def test_a_record_without_its_parts_is_exit_4(finished: Path, key: str, value: object) -> None:
    write_record(finished, record_of(finished) | {key: value})
    assert_refused(call("evaluate", finished, "--limit", 2, "--samples", 1), 4)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\0\0\0", b"[1]\n", b'{"loss": 1}\n', b'{"step": "x"}\n'])
def test_damaged_metrics_are_refused_or_left_out_and_do_not_matter_to_the_model(stopped: Path, content: bytes) -> None:
    good = lb.load(stopped)
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(content)
    assert same_model(lb.load(stopped), good)
    folder = RunFolder(stopped)
    experiment = Experiment(prepare(mlp, open_data("digits"), SMALL), folder, device=CPU)
    with contextlib.suppress(CheckpointError):
        experiment.resume()
        assert [line["step"] for line in folder.read_metrics()] == [1, 2]


@pytest.mark.parametrize(
    ("key", "value"), [("step", "x"), ("step", -5), ("seconds", None), ("means", {}), ("best", "x"), ("waited", "x")]
)
def test_a_checkpoint_with_impossible_scalars_is_refused_on_resume(stopped: Path, key: str, value: object) -> None:
    folder = RunFolder(stopped)
    saved = folder.latest_checkpoint()
    assert saved is not None
    folder.save_checkpoint(2, saved[0], saved[1] | {key: value})
    experiment = Experiment(prepare(mlp, open_data("digits"), SMALL), folder, device=CPU)
    with pytest.raises(CheckpointError):
        experiment.resume()


def test_a_run_without_any_checkpoint_says_how_to_go_on(stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(CheckpointError, match="--resume"):
        lb.load(stopped)
