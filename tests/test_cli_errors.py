"""What the command line says when something is wrong: the right status, one paragraph, and nothing left behind."""

import gzip
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from command import Answer, assert_refused, call, run, succeed, tiny

from lowerbound.data.fetch import find
from lowerbound.data.named import FASHION_MNIST, MNIST


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "trained"
    succeed(call(*tiny(path)))
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluat", "runs/x"], ["evaluat", "evaluate"]),
        (["train", "mpl", "--data", "digits", "--out", "x"], ["mpl", "mlp"]),
        (["train", "mlp", "--data", "digits", "--out", "x", "--latent-dimm", 4], ["--latent-dimm", "--latent-dim?"]),
        (["train", "mlp", "--out", "x"], ["--data"]),
        (["train", "mlp", "--data", "digits"], ["--out"]),
        (["evaluate"], ["RUN"]),
        (["sample", "x"], ["--out"]),
        (["train", "mlp", "--data", "digits", "--out", "x", "--epochs", "many"], ["--epochs", "many"]),
        (["train", "mlp", "--data", "digits", "--out", "x", "--binarise", "dynamc"], ["dynamc", "dynamic"]),
        (["train", "conv", "--data", "digits", "--out", "x", "--depth", 2], ["--depth"]),
        (
            ["train", "nosuch_module:recipe", "--data", "digits", "--out", "x"],
            ["nosuch_module:recipe", "module:function"],
        ),
        (["train", "math:nosuch", "--data", "digits", "--out", "x"], ["math:nosuch"]),
        (["train", "math:pi", "--data", "digits", "--out", "x"], ["math:pi"]),
        (["train", "os:getcwd", "--data", "digits", "--out", "x"], ["os:getcwd"]),
    ],
)
def test_a_command_that_is_not_understood_is_exit_2(
    arguments: list[object], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(call(*arguments), 2, *said)
    assert not list(tmp_path.iterdir())


def test_errors_are_one_paragraph_in_a_process_of_its_own_too(tmp_path: Path) -> None:
    assert_refused(run("train", "mpl", "--data", "digits", "--out", tmp_path / "x"), 2, "mlp")
    assert_refused(run("evaluate", tmp_path / "nothing", "--json"), 4, str(tmp_path / "nothing"), "no run folder")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("latent_dim", 0, "at least 1"),
        ("latent_dim", -3, "-3"),
        ("latent_dim", 10**12, "latent"),
        ("width", 0, "at least 1"),
        ("depth", 0, "at least 1"),
        ("beta", -1, "beta"),
        ("warmup", -1, "warmup"),
        ("average", 1.5, "average"),
        ("patience", -1, "patience"),
        ("epochs", 0, "epochs"),
        ("epochs", -1, "epochs"),
        ("minutes", 0, "minutes"),
        ("batch_size", 0, "batch_size"),
        ("batch_size", 1258, "1,257 examples"),
        ("lr", -1, "lr"),
        ("lr", "nan", "lr"),
        ("lr", "inf", "lr"),
        ("seed", -1, "seed"),
        ("seed", 2**70, "seed"),
        ("valid", -1, "1,437"),
        ("valid", 1437, "1,437"),
        ("save_every", -1, "--save-every"),
        ("save_every", "nan", "--save-every"),
        ("precision", "fp8", "auto, fp32, bf16"),
        ("device", "cudda", "cudda"),
        ("device", "cpu:x", "cpu:x"),
        ("log", "tensorbord", "tensorboard?"),
    ],
)
def test_a_setting_that_cannot_be_is_exit_2_and_leaves_the_folder_free(
    option: str, value: object, said: str, tmp_path: Path
) -> None:
    assert_refused(call(*tiny(tmp_path / "run", **{option: value})), 2, said)
    # So that the same command, put right, is not told that its folder is taken.
    assert content_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("levels", 0, "channels"),
        ("levels", 9, "cannot be halved 9 times"),
        ("levels", -1, "channels"),
        ("channels", 0, "channels"),
        ("features", 0, "features"),
    ],
)
def test_a_network_that_cannot_be_is_exit_2(option: str, value: int, said: str, tmp_path: Path) -> None:
    arguments = ["train", "conv", "--data", "digits", "--out", tmp_path / "run", f"--{option}", value]
    assert_refused(call(*arguments), 2, said)


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    assert_refused(call(*tiny(tmp_path / "run"), "--resume", "--overwrite"), 2, "--resume", "--overwrite")


def toml(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latent-dim = 3\nlatnet-dim = 4\n", "latnet-dim"),
        ("latent-dim = 'x'\n", "latent-dim"),
        ("latent-dim = \n", "line 1"),
    ],
)
def test_a_config_file_that_is_wrong_is_exit_2_and_named(text: str, said: str, tmp_path: Path) -> None:
    config = toml(tmp_path / "settings.toml", text)
    arguments = ["train", "mlp", "--data", "digits", "--out", tmp_path / "run", "--config", config]
    assert_refused(call(*arguments), 2, said, "settings.toml")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [["--config", "nosuch.toml"], ["--config"], ["--config="]])
def test_a_config_file_that_is_not_there_is_exit_2(given: list[str], tmp_path: Path) -> None:
    assert_refused(call(*tiny(tmp_path / "run"), *given), 2, "--config")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "--samples", 0], ["--samples"]),
        (["evaluate", "--limit", 1], ["at least 2"]),
        (["evaluate", "--limit", -1], ["at least 2"]),
        (["evaluate", "--gap", -1], ["--gap -1", "at least 2"]),
        (["evaluate", "--gap", 1], ["--gap 1", "0 to leave"]),
        (["evaluate", "--split", "tset"], ["tset", "test?"]),
        (["evaluate", "--device", "tpu"], ["tpu", "cpu"]),
        (["sample", "--out", "x.png", "--n", 0], ["at least 1"]),
        (["sample", "--out", "x.png", "--n", -5], ["at least 1"]),
        (["sample", "--out", "x.gif"], [".png", ".npz"]),
        (["sample", "--out", "x"], [".png", ".npz"]),
        (["reconstruct", "--out", "x.png", "--n", 0], ["at least 1"]),
        (["reconstruct", "--out", "x.csv"], [".png"]),
        (["encode", "--out", "x.png"], [".csv"]),
        (["encode", "--out", "x.csv", "--split", "some"], ["some", "test", "all"]),
        (["interpolate", "--out", "x.png", "--steps", 1], ["two ends"]),
        (["interpolate", "--out", "x.png", "--from", -1], ["--from", "359"]),
        (["interpolate", "--out", "x.png", "--from", 360], ["--from", "359"]),
        (["interpolate", "--out", "x.png", "--to", 360], ["--to", "359"]),
    ],
)
def test_what_cannot_be_asked_of_a_run_is_exit_2(
    trained: Path, arguments: list[object], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(call(arguments[0], trained, *arguments[1:]), 2, *said)
    assert not list(tmp_path.iterdir())


def test_a_split_that_the_run_learned_from_is_not_there_to_judge_on(tmp_path: Path) -> None:
    succeed(call("train", "tutorial", *tiny(tmp_path / "run")[2:]))
    assert_refused(call("evaluate", tmp_path / "run", "--split", "valid"), 2, "valid", "--split test")


def test_a_folder_that_is_taken_is_exit_2_and_untouched(trained: Path, tmp_path: Path) -> None:
    path = shutil.copytree(trained, tmp_path / "run")
    before = content_of(path)
    assert_refused(call(*tiny(path, epochs=2)), 2, "--resume", "--overwrite")
    assert content_of(path) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert_refused(call(*tiny(other)), 2, str(other))
    assert content_of(other) == {"thesis.tex": b"years of work"}


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("verb", ["sample", "train"])
def test_too_little_memory_is_exit_6_and_costs_nothing_saved(trained: Path, tmp_path: Path, verb: str) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    before = content_of(trained)
    if verb == "sample":
        # 64 numbers each: 5 GB.
        answer = run("sample", trained, "--n", 20_000_000, "--out", tmp_path / "x.npz", preexec_fn=limit)
    else:
        answer = run(*tiny(tmp_path / "x", width=12_000, depth=2), preexec_fn=limit)
    assert_refused(answer, 6, "not enough memory", "Nothing that was saved is lost")
    assert ("--resume" in answer.err) == (verb == "train"), "the only verb that has it"
    assert content_of(trained) == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_glibc_is_left_alone_where_addresses_are_limited() -> None:
    code = "from lowerbound.cli.app import _addresses_are_limited as limited; print(limited())"
    limits = ("resource.RLIM_INFINITY", "4 << 30")
    found = [
        subprocess.check_output(
            [sys.executable, "-c", f"import resource; resource.setrlimit(resource.RLIMIT_AS, [{soft}] * 2); {code}"],
            text=True,
        ).strip()
        for soft in limits
    ]
    assert found == ["False", "True"]


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    succeed(call(*tiny(tmp_path)))


@pytest.mark.parametrize("below", ["", "deeper/run"])
def test_a_file_in_the_place_of_a_folder_is_exit_6(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    assert_refused(call(*tiny(tmp_path / "file" / below)), 6, "is a file")
    assert content_of(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("verb", ["sample", "reconstruct", "interpolate", "encode"])
@pytest.mark.parametrize("kind", ["folder", "below a file"])
def test_a_result_that_cannot_be_written_is_exit_6(trained: Path, tmp_path: Path, verb: str, kind: str) -> None:
    name = "x.csv" if verb == "encode" else "x.png"
    if kind == "folder":
        (tmp_path / name).mkdir()
        out = tmp_path / name
    else:
        (tmp_path / "file").write_text("mine")
        out = tmp_path / "file" / name
    answer = call(verb, trained, "--out", out)
    assert_refused(answer, 6, str(out), "could not be written")
    assert "--resume" not in answer.err, "which this verb does not have"


@pytest.mark.parametrize("verb", ["evaluate", "sample", "reconstruct", "encode", "interpolate"])
@pytest.mark.parametrize("kind", ["nothing", "empty", "file", "other"])
def test_what_is_no_run_folder_is_exit_4(tmp_path: Path, verb: str, kind: str) -> None:
    path = tmp_path / "run"
    match kind:
        case "empty":
            path.mkdir()
        case "file":
            path.write_text("{}")
        case "other":
            (path / "run.json").mkdir(parents=True)
    out = [] if verb == "evaluate" else ["--out", tmp_path / ("x.npz")]
    assert_refused(call(verb, path, *out), 4, str(path), "lowerbound train")
    assert not (tmp_path / "x.npz").exists()


def test_a_second_training_in_the_same_folder_is_exit_6(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with filelock.FileLock(path / ".lock"):
        assert_refused(run(*tiny(path)), 6, "Another process", str(path))
    assert content_of(path) == {}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("minst", ["'minst'", "mnist"]),
        ("digit", ["'digit'", "digits?"]),
        ("nosuch.npy", ["nosuch.npy"]),
        ("nosuch/x.npz", ["nosuch/x.npz"]),
        ("x.parquet.xz", ["x.parquet.xz"]),
        ("", [".npy"]),
        (".", ["pictures"]),
    ],
)
def test_a_source_that_is_not_there_is_exit_3(source: str, said: list[str], tmp_path: Path) -> None:
    assert_refused(call(*tiny(tmp_path / "run", data=source)), 3, *said)
    assert not (tmp_path / "run").exists()


def test_a_source_that_went_away_is_exit_3(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((60, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    succeed(call(*tiny(tmp_path / "run", data=tmp_path / "x.npy", batch_size=20)))
    (tmp_path / "x.npy").unlink()
    assert_refused(call("evaluate", tmp_path / "run"), 3, "x.npy")
    np.save(tmp_path / "x.npy", 1 - x)
    answer = succeed(call("evaluate", tmp_path / "run", "--json", "--samples", 2))
    assert any("values have changed" in note for note in answer.json["notes"])
    np.save(tmp_path / "x.npy", x[..., :4])
    assert_refused(call("evaluate", tmp_path / "run"), 2, "(1, 8, 8)", "(1, 8, 4)")


def numbers() -> np.ndarray:
    return np.random.default_rng(0).random((50, 1, 8, 8), dtype=np.float32)


def refused_source(tmp_path: Path, name: str, **changes: Any) -> Answer:
    answer = call(*tiny(tmp_path / "run", **{"data": tmp_path / name, "batch_size": 10, **changes}))
    assert not (tmp_path / "run" / "run.json").exists()
    return answer


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_exit_3_and_located(tmp_path: Path, value: float) -> None:
    x = numbers()
    x[17, 0, 2, 5] = value
    np.save(tmp_path / "x.npy", x)
    assert_refused(refused_source(tmp_path, "x.npy"), 3, "x.npy", "example 17", "(0, 2, 5)", f"{value:g}")


@pytest.mark.parametrize(
    "changes", [{"likelihood": "bernoulli", "binarise": "none"}, {"binarise": "dynamic"}], ids=lambda c: next(iter(c))
)
def test_values_outside_the_likelihoods_support_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    x = numbers()
    x[17, 0, 2, 5] = 1.5
    np.save(tmp_path / "x.npy", x)
    assert_refused(refused_source(tmp_path, "x.npy", **changes), 2, "support real")


def _damaged(kind: str, path: Path) -> str:
    """Writes a damaged source and returns its name."""
    npy, npz = path / "x.npy", path / "x.npz"
    match kind:
        case "cut npy":
            np.save(npy, numbers())
            npy.write_bytes(npy.read_bytes()[:-100])
        case "cut npz":
            np.savez(npz, x=numbers())
            npz.write_bytes(npz.read_bytes()[:-100])
        case "flipped npz":
            np.savez_compressed(npz, x=numbers())
            content = bytearray(npz.read_bytes())
            content[len(content) // 2] ^= 255
            npz.write_bytes(content)
        case "empty":
            npy.write_bytes(b"")
        case "text":
            npy.write_text("not an array")
        case "pickle":
            np.save(npy, np.array([{"a": 1}] * 10, dtype=object), allow_pickle=True)
        case "no x":
            np.savez(npz, images=numbers())
        case "no test":
            np.savez(npz, x_train=numbers())
        case "few labels":
            np.savez(npz, x=numbers(), y=np.arange(3))
        case "labels of letters":
            np.savez(npz, x=numbers(), y=np.array(["a"] * 50))
        case "strings":
            np.save(npy, np.array([["a"]] * 50))
        case "complex":
            np.save(npy, numbers().astype(np.complex64))
        case "one row":
            np.save(npy, numbers()[:1])
        case "no rows":
            np.save(npy, numbers()[:0])
        case "no columns":
            np.save(npy, numbers()[..., :0])
        case "a scalar":
            np.save(npy, np.float32(1))
    return npy.name if npy.exists() else npz.name


@pytest.mark.parametrize(
    "kind",
    [
        "cut npy",
        "cut npz",
        "flipped npz",
        "empty",
        "text",
        "pickle",
        "no x",
        "no test",
        "few labels",
        "labels of letters",
        "strings",
        "complex",
        "one row",
        "no rows",
        "no columns",
        "a scalar",
    ],
)
def test_a_damaged_file_of_arrays_is_exit_3_and_named(tmp_path: Path, kind: str) -> None:
    name = _damaged(kind, tmp_path)
    refused = refused_source(tmp_path, name)
    assert_refused(refused, 3, name)
    assert "allow_pickle" not in refused.err


def idx(values: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    shape = values.shape if shape is None else shape
    header = struct.pack(f">{len(shape)}I", *shape)
    return gzip.compress(bytes([0, 0, 8, len(shape)]) + header + values.tobytes(), 1)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, nothing in the cache; returns the cache's folder."""
    monkeypatch.setenv("LOWERBOUND_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LOWERBOUND_DATA", raising=False)
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["cut", "flipped", "lying", "other digits", "empty", "a web page"])
def test_a_damaged_copy_of_mnist_is_exit_3_and_named(offline: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    images = np.zeros((20, 28, 28), np.uint8)
    content = idx(images)
    match kind:
        case "cut":
            content = content[: len(content) // 2]
        case "flipped":
            content = content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]
        case "lying":
            content = idx(images, (4_000_000_000, 28, 28))
        case "empty":
            content = b""
        case "a web page":
            content = b"<html>Sign in to this network</html>"
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    said = {"cut": "truncated", "flipped": "damaged", "other digits": "sha256"}.get(kind, "fetch it again")
    answer = call(*tiny(tmp_path / "run", data="mnist"), "--data-dir", tmp_path / "data")
    assert_refused(answer, 3, "train-images-idx3-ubyte.gz")
    assert said.lower() in answer.err.lower()
    assert not (tmp_path / "run").exists()
    assert not offline.exists()


def test_no_network_is_exit_3_and_lists_what_was_tried_and_what_works(offline: Path, tmp_path: Path) -> None:
    # A system package may have put Fashion-MNIST there, which is then found.
    files = MNIST if find(FASHION_MNIST, "train-images-idx3-ubyte") else FASHION_MNIST
    env = {"LOWERBOUND_DATA": str(tmp_path / "mine")}
    answer = run(*tiny(tmp_path / "run", data=files.name), "--data-dir", tmp_path / "given", env=env)
    tried = (tmp_path / "given" / files.name, tmp_path / "mine" / files.name, offline / "lowerbound" / files.name)
    works = ("mnist-5k", "--data digits", "pip install", "--data-dir", "LOWERBOUND_DATA", "LOWERBOUND_OFFLINE")
    assert_refused(answer, 3, *map(str, tried), *works)
    assert not (tmp_path / "run").exists()
