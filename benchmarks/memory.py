"""The most memory resident at once, of whole commands as users give them.

Training is one epoch of `tutorial`. Measuring log p(x) should take the same memory for any number of draws and of
images, so it is measured at few and many of both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Result, mebibytes
from settings import Settings


def memory(settings: Settings) -> Result:
    """Measures the track."""
    data = settings.sized(settings.digits, "mnist-5k")
    images, draws = settings.sized(((100, 1000), (100, 1000)), ((20, 40), (10, 50)))
    peaks: dict[str, int] = {"import torch": peak("-c", "import torch")}
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        train = ("train", "tutorial", "--data", data, "--epochs", "1")
        peaks[" ".join(("lowerbound", *train))] = peak("-m", "lowerbound", *train, "--out", run)
        for limit in images:
            for samples in draws:
                measure = ("evaluate", "--samples", str(samples), "--limit", str(limit), "--gap", "0")
                peaks[" ".join(("lowerbound", *measure))] = peak("-m", "lowerbound", measure[0], run, *measure[1:])
    base = peaks["import torch"]
    return Result(
        "memory",
        f"The most memory resident at once; {settings.threads} threads",
        ("command", "peak", "above torch alone"),
        rows=[(name, mebibytes(count), mebibytes(count - base)) for name, count in peaks.items()],
        notes=["One run of each: the peak of a process hardly varies."],
        values={"peak_bytes": peaks},
    )


def peak(*command: str) -> int:
    """Bytes resident at most in one process, by the operating system's account; it must succeed."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}: {said}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
