"""Data larger than memory: the memory of whole commands on small and large files, and the speed from disk and memory.

The pictures are noise, 8-bit, 3 x 32 x 32. The tables are Parquet files of 96 columns of noise with holes, one of
counts and three of labels, in row groups of 100,000 rows; all rows are encoded.

Every command runs under a limit on its address space (`ulimit -v`), which counts more than memory: all code of the
libraries, and every mapped file whole. Speed is of epochs after the first, on one and the same file of pictures, held
in memory and read as it is wanted, in turns; the networks are so small that reading counts.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from measure import Result, mebibytes, take_turns
from pyarrow import parquet
from settings import Settings

import lowerbound as lb
from lowerbound.data import cache, stored

LIMIT = 1_500_000_000
_EVENT = (3, 32, 32)
_BLOCK = 1000
_ROWS = 100_000
_TRAIN = ("--width", "64", "--latent-dim", "8", "--batch-size", "256", "--device", "cpu")


def streaming(settings: Settings) -> Result:
    """Measures the track."""
    # The first is held in memory, the others are not.
    sizes = settings.sized((200_000_000, 300_000_000, 2_000_000_000), (4_000_000, 8_000_000, 12_000_000))
    peaks: dict[str, dict[str, dict[str, int]]] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("LOWERBOUND_BENCH_DIR")) as folder:
        os.environ["LOWERBOUND_CACHE"] = str(Path(folder) / "cache")
        for size in sizes:
            path = Path(folder) / "x.npy"
            write(path, size)
            peaks[f"{size / 1e6:,.0f} MB"] = of_commands(path, Path(folder) / "run", settings)
            path.unlink()
            # What is small is held in memory, a table too.
            if size in (sizes[0], sizes[-1]):
                table = Path(folder) / "x.parquet"
                write_table(table, size)
                peaks[f"{size / 1e6:,.0f} MB"] |= of_tables(table, Path(folder) / "run", settings)
                table.unlink()
                shutil.rmtree(os.environ["LOWERBOUND_CACHE"], ignore_errors=True)
        write(path, sizes[0])
        ways = {"in memory": trainer(path, size=1 << 40), "from disk": trainer(path, size=-1)}
        timings = take_turns(ways, settings.rounds)
        path.unlink()
    largest = list(peaks.values())[-1]
    rows = [
        (
            name,
            *(mebibytes(one[name]["resident"]) if name in one else "" for one in peaks.values()),
            mebibytes(told["address_space"]),
        )
        for name, told in largest.items()
    ]
    examples = examples_in(sizes[0]) * 0.81  # a tenth to test on, and of the rest a tenth to validate
    speeds = {name: examples / timing.median for name, timing in timings.items()}
    share = timings["from disk"].against(timings["in memory"])
    rows += [(f"examples/s {name}", f"{speed:,.0f}", "", "", "") for name, speed in speeds.items()]
    return Result(
        "streaming",
        f"The most memory resident, of commands on files of several sizes, under {LIMIT / 1e9:g} GB of address space",
        ("command", *peaks, "address space of the largest"),
        rows=rows,
        notes=[f"From disk an epoch of `mlp` with width 64 runs at {share:.0%} of the speed from memory."],
        values={
            "limit_bytes": LIMIT,
            "peak_bytes": peaks,
            "examples_per_second": speeds,
            "epoch_seconds": {name: timing.seconds for name, timing in timings.items()},
            "speed_from_disk_over_memory": share,
        },
    )


def examples_in(size: int) -> int:
    return size // int(np.prod(_EVENT)) // _BLOCK * _BLOCK


def write(path: Path, size: int) -> None:
    """Writes pictures of noise, no two blocks alike."""
    count = examples_in(size)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, count, _BLOCK):
            yield np.random.default_rng(start).integers(0, 256, (_BLOCK, *_EVENT), dtype=np.uint8)

    cache.pack(path, (count, *_EVENT), np.dtype(np.uint8), blocks())


def write_table(path: Path, size: int) -> None:
    """Writes rows of noise, no two row groups alike, until the file has that size."""
    draws, rows = np.random.default_rng(0), min(_ROWS, size // 800)
    with path.open("wb") as file:
        writer = None
        while file.tell() < size:
            numbers = {f"x{i}": draws.normal(i, 1 + i, rows) for i in range(96)}
            columns = {name: pa.array(values, mask=draws.random(rows) < 0.05) for name, values in numbers.items()}
            columns |= {f"c{i}": pa.array(draws.choice(list("abcde"), rows)) for i in range(3)}
            table = pa.table(columns | {"n": pa.array(draws.poisson(30, rows))})
            writer = writer or parquet.ParquetWriter(file, table.schema, compression="none")
            writer.write_table(table, row_group_size=rows)
        if writer is not None:
            writer.close()


def of_tables(data: Path, run: Path, settings: Settings) -> dict[str, dict[str, int]]:
    """The most memory of each command on a table, in bytes."""
    minutes, limit = settings.sized(("0.5", "1000"), ("0.02", "50"))
    budget = (*_TRAIN, "--num-samples", "5", "--minutes", minutes, "--save-every", "600")
    codes = run.with_suffix(".npz")
    commands = {
        "train, table": ("train", "tabular", "--data", str(data), "--out", str(run), "--overwrite", *budget),
        "evaluate, table": ("evaluate", str(run), "--samples", "10", "--gap", "0", "--limit", limit),
        "encode, table": ("encode", str(run), "--split", "all", "--out", str(codes)),
    }
    found = {name: peak(*command) for name, command in commands.items()}
    codes.unlink()
    return found


def of_commands(data: Path, run: Path, settings: Settings) -> dict[str, dict[str, int]]:
    """The most memory of each command on a file, in bytes."""
    minutes, limit = settings.sized(("0.5", "5000"), ("0.02", "50"))
    budget = (*_TRAIN, "--minutes", minutes, "--save-every", "600")
    commands = {
        "train": ("train", "mlp", "--data", str(data), "--out", str(run), "--overwrite", *budget),
        "evaluate": ("evaluate", str(run), "--samples", "10", "--gap", "0", "--limit", limit),
        "encode": ("encode", str(run), "--split", "test", "--out", str(run.with_suffix(".npz"))),
    }
    return {name: peak(*command) for name, command in commands.items()}


def peak(*command: str) -> dict[str, int]:
    """The most memory of one command, which must succeed, by its own account when it ends."""
    code = (
        "import atexit, sys\n"
        "def tell():\n"
        "    lines = [line.split() for line in open('/proc/self/status')]\n"
        "    print('PEAK', *(words[1] for words in lines if words[0] in ('VmPeak:', 'VmHWM:')), file=sys.stderr)\n"
        "atexit.register(tell)\n"
        "from lowerbound.cli import run\n"
        "run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr}")
    space, resident = (1024 * int(word) for word in done.stderr.split()[-2:])
    return {"address_space": space, "resident": resident}


def trainer(path: Path, size: int) -> Callable[[], float]:
    """Returns what trains one more epoch of a model on a file, and returns its seconds."""
    stored.HELD_BYTES = size
    data = lb.open_data(str(path))
    settings = {"width": 64, "latent_dim": 8, "batch_size": 256, "epochs": 1000}
    run = lb.recipes.mlp(data, **settings)
    steps = lb.train(run.vae, data.train, run.objective, run.training, device=torch.device("cpu"))

    def epoch() -> float:
        began = time.perf_counter()
        for step in steps:
            if step.epoch_ends:
                break
        return time.perf_counter() - began

    return epoch
