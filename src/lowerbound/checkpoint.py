"""Run folders: written whole or not at all, checked when read, and never executed.

```
RUN/run.json            what was asked for: recipe, settings, data, model, objective, training, versions
RUN/model.safetensors   the weights to use
RUN/manifest.json       schema and the sha256 of both; written last, so its presence means that training is finished
RUN/metrics.jsonl       one line a log point
RUN/checkpoints/        step-N/ folders with all that an exact resume needs, each with a manifest of its own
```

A file reaches its name only after its bytes have reached the disk: it is written beside its place, flushed, and
renamed. A checkpoint is a folder that is renamed as a whole. So a process can be killed at any moment, and what is
found afterwards is complete. What is read is checked against its sha256, because safetensors and JSON notice a file
that is cut short but not a flipped bit. Nothing is pickled: a run folder from a stranger can hold wrong numbers, never
code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import safetensors.torch
import torch
from torch import Tensor

from lowerbound import spec
from lowerbound.errors import CheckpointError, ResourceError, UsageError, disk_errors
from lowerbound.model import VAE

SCHEMA = 1
_KEEP = 2
_LOCK = ".lock"
_RESUME = "run the same command with --resume"
_MAX_JSON = 16 << 20


@dataclass(frozen=True)
class SavedRun:
    """A run that was read back.

    Attributes:
        vae: The model with its weights, in evaluation mode, on the CPU.
        record: What run.json says.
        finished: Whether training had ended; otherwise the weights are those of the last checkpoint.
    """

    vae: VAE
    record: dict[str, Any]
    finished: bool


def load(path: str | Path) -> VAE:
    """Gives back the model of a run.

    Args:
        path: The run folder.

    Returns:
        The model with the weights to use, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: The folder is no run, or it is damaged.
    """
    return RunFolder(path).read().vae


class RunFolder:
    """A run's folder on the disk.

    Args:
        path: Where it is, or will be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.figures = self.path / "figures"

    def exists(self) -> bool:
        """Returns whether a run was begun here."""
        return (self.path / "run.json").is_file()

    def occupied(self) -> bool:
        """Returns whether there is anything here already (the lock aside)."""
        return self.path.is_dir() and any(entry.name != _LOCK for entry in self.path.iterdir())

    def check_free(self, *, may_exist: bool) -> None:
        """Refuses, before any work is done, a folder that is in use for something else.

        Args:
            may_exist: Whether a run in it is to be gone on with, or overwritten.

        Raises:
            UsageError: There is something in the folder and `may_exist` is False.
            ResourceError: The path is a file, or lies in one.
        """
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir():
            raise ResourceError(f"{self.path} cannot be a run folder: {parent} is a file.")
        if self.occupied() and not may_exist:
            raise UsageError(
                f"{self.path} exists already and is not overwritten without being asked. Give another --out, "
                "--resume to go on with the run in it, or --overwrite to begin anew."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing to this run while the body runs.

        Raises:
            ResourceError: Another process holds it, or the folder cannot be made.
        """
        with disk_errors(self.path, _RESUME):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / _LOCK, timeout=0)
            try:
                lock.acquire()
            except filelock.Timeout as error:
                raise ResourceError(
                    f"Another process is training into {self.path}. Wait for it, or give another --out."
                ) from error
        try:
            yield
        finally:
            lock.release()

    def begin(self, record: dict[str, Any]) -> None:
        """Begins a run, removing an earlier one if there is any."""
        with disk_errors(self.path, _RESUME):
            self.path.mkdir(parents=True, exist_ok=True)
            # The manifest goes first: without it, nothing that is left half removed can be taken for a run.
            for name in ("manifest.json", "run.json", "model.safetensors", "metrics.jsonl", "report.html"):
                (self.path / name).unlink(missing_ok=True)
            for folder in (self.checkpoints, self.figures, self.path / "tensorboard"):
                shutil.rmtree(folder, ignore_errors=True)
            _write(self.path / "run.json", _json_bytes({"schema": SCHEMA, **record}))

    def record(self) -> dict[str, Any]:
        """Returns what run.json says.

        Raises:
            CheckpointError: This is no run folder, or run.json is damaged or of a newer schema.
        """
        if not self.exists():
            raise CheckpointError(
                f"{self.path} is no run folder: it has no run.json. A run folder is what `lowerbound train` writes "
                "to --out."
            )
        record = _read_json(self.path / "run.json")
        if record.get("schema") != SCHEMA:
            raise CheckpointError(
                f"{self.path / 'run.json'} has schema {record.get('schema')!r}, and this version of lowerbound reads "
                f"schema {SCHEMA}. Use the version that wrote it: {_written_by(record)}."
            )
        return record

    def finish(self, weights: dict[str, Tensor]) -> None:
        """Writes the weights to use and the manifest, which says that the run is complete."""
        with disk_errors(self.path, _RESUME):
            (self.path / "manifest.json").unlink(missing_ok=True)
            _write(self.path / "model.safetensors", safetensors.torch.save(_contiguous(weights)))
            _write_manifest(self.path, ("run.json", "model.safetensors"))

    def read(self) -> SavedRun:
        """Reads the run back: the finished model, or the last checkpoint's if training has not ended.

        Raises:
            CheckpointError: This is no run folder, there are no weights in it yet, or it is damaged.
        """
        record = self.record()
        if (self.path / "manifest.json").is_file():
            files = _read_verified(self.path, ("run.json", "model.safetensors"))
            weights, finished = _tensors(files["model.safetensors"], self.path / "model.safetensors"), True
        else:
            saved = self.latest_checkpoint()
            if saved is None:
                raise CheckpointError(
                    f"The run in {self.path} has no weights yet: its training was stopped before the first checkpoint. "
                    "Run the same train command again with --resume."
                )
            prefix = "kept."
            tensors, scalars = saved
            if scalars.get("run_sha256") != self._record_digest():
                raise CheckpointError(
                    f"{self.path / 'run.json'} is not the one that the last checkpoint was written with; it is "
                    "damaged. Restore it from a copy."
                )
            weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            finished = False
        return SavedRun(build_model(record, weights, self.path), record, finished)

    def save_checkpoint(self, step: int, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Saves all that an exact resume needs, as one folder that appears whole; older ones are removed after.

        Raises:
            ResourceError: The disk is full or refuses; earlier checkpoints are untouched.
        """
        with disk_errors(self.path, _RESUME):
            self.checkpoints.mkdir(exist_ok=True)
            for litter in self.checkpoints.glob(".tmp-*"):
                shutil.rmtree(litter, ignore_errors=True)
            temporary = self.checkpoints / f".tmp-{step:09d}"
            final = self.checkpoints / f"step-{step:09d}"
            try:
                temporary.mkdir()
                _write(temporary / "state.safetensors", safetensors.torch.save(_contiguous(tensors)))
                scalars = scalars | {"run_sha256": self._record_digest()}
                _write(temporary / "state.json", _json_bytes(scalars))
                _write_manifest(temporary, ("state.safetensors", "state.json"))
                if final.exists():
                    shutil.rmtree(final)
                temporary.rename(final)
                _sync_folder(self.checkpoints)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            for old in self._steps()[:-_KEEP]:
                shutil.rmtree(old, ignore_errors=True)

    def latest_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Returns the tensors and scalars of the newest checkpoint, or None when there is none yet.

        Raises:
            CheckpointError: The newest checkpoint is damaged.
        """
        steps = self._steps()
        if not steps:
            return None
        files = _read_verified(steps[-1], ("state.safetensors", "state.json"))
        tensors = _tensors(files["state.safetensors"], steps[-1] / "state.safetensors")
        return tensors, _parse_json(files["state.json"], steps[-1] / "state.json")

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        with disk_errors(self.path, _RESUME), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl, up to the first that is no line of metrics (cut short, say)."""
        if not self.metrics.is_file():
            return []
        lines = []
        for text in self.metrics.read_bytes().splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                break
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                break
            lines.append(line)
        return lines

    def rewind_metrics(self, step: int) -> None:
        """Drops the lines after update `step`: a resumed training writes them again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        with disk_errors(self.path, _RESUME):
            _write(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def _record_digest(self) -> str:
        return hashlib.sha256((self.path / "run.json").read_bytes()).hexdigest()

    def _steps(self) -> list[Path]:
        return sorted(p for p in self.checkpoints.glob("step-*") if (p / "manifest.json").is_file())


def _written_by(record: dict[str, Any]) -> str:
    versions = record.get("versions")
    return f"lowerbound {versions.get('lowerbound', '?')}" if isinstance(versions, dict) else "unknown"


def build_model(record: dict[str, Any], weights: dict[str, Tensor], where: Path) -> VAE:
    """Builds the model that a record describes and gives it its weights.

    The model is first built without memory and its tensors are held against the saved ones, so a description that asks
    for terabytes is refused before anything is allocated.

    Raises:
        CheckpointError: Description and weights do not fit each other.
    """
    with torch.device("meta"):
        vae = spec.build(record.get("model"))
    if not isinstance(vae, VAE):
        raise CheckpointError(f"{where} describes a {type(vae).__name__} where a VAE is expected.")
    expected = {k: (tuple(v.shape), str(v.dtype)) for k, v in vae.state_dict().items()}
    found = {k: (tuple(v.shape), str(v.dtype)) for k, v in weights.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))
        names = ", ".join(dict.fromkeys(name for name, _ in wrong[:6]))
        raise CheckpointError(
            f"The weights in {where} are not those of the model described; missing, extra, or of other shape or type: "
            f"{names}. The run is damaged: restore it from a copy."
        )
    bad = [k for k, v in weights.items() if not torch.isfinite(v).all()]
    if bad:
        raise CheckpointError(f"The weights in {where} are not all finite numbers: {', '.join(bad[:5])}.")
    vae.load_state_dict(weights, strict=True, assign=True)
    return vae.eval()


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        ResourceError: The disk is full or refuses; what was there before is intact.
    """
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes its name when the body ends well, and leaves nothing behind otherwise.

    Raises:
        ResourceError: The disk is full or refuses; what was there before is intact.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _whole(path) as file:
            yield file


def _write(path: Path, content: bytes) -> None:
    with _whole(path) as file:
        file.write(content)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # A rename is on the disk only when its folder is. Windows has no such call, and needs none.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_manifest(folder: Path, names: tuple[str, ...]) -> None:
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    _write(folder / "manifest.json", _json_bytes({"schema": SCHEMA, "sha256": digests}))


def _read_verified(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    digests = _read_json(folder / "manifest.json").get("sha256")
    if not isinstance(digests, dict):
        raise CheckpointError(f"{folder / 'manifest.json'} has no checksums; the run is damaged.")
    contents = {}
    for name in names:
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read ({error.strerror}); the run is damaged.") from error
        if hashlib.sha256(contents[name]).hexdigest() != digests.get(name):
            raise CheckpointError(
                f"{folder / name} is damaged: its sha256 is not the one in {folder / 'manifest.json'}. Restore it from "
                "a copy, or train again."
            )
    return contents


def _tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # its own exception type is not exported by every version
        raise CheckpointError(f"{path} is no safetensors file ({error}); the run is damaged.") from error


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Parts may share a tensor; safetensors wants each on its own.
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def _json_bytes(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    # What a file's name has that is no text, as JSON escapes it.
    return text.encode("utf-8", "backslashreplace")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{path} is larger than any run's; refused.")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); the run is damaged.") from error
    return _parse_json(content, path)


def _parse_json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON ({type(error).__name__}); the run is damaged.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object; the run is damaged.")
    return value
