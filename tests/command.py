"""Runs commands for the tests: in a process of their own, or in this one where only the answer matters."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lowerbound.cli import main

TIMEOUT_S = 120
# Trains in a fraction of a second on the 8x8 digits: 1,257 training examples, 5 updates an epoch.
_TINY = {"data": "digits", "epochs": 1, "width": 16, "latent_dim": 3, "device": "cpu"}


class Answer(NamedTuple):
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def words(self) -> str:
        """Stdout and stderr as one line, whatever the width they were wrapped to."""
        return " ".join((self.out + self.err).split())


def tiny(out: Path | str, **changes: object) -> list[object]:
    """Returns the arguments of a very small training of the recipe `mlp`, with other options where asked."""
    options = {**_TINY, "out": out, **changes}
    return ["train", "mlp", *(part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", v))]


def start(*arguments: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Starts a command in a process of its own, with one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "lowerbound", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        **options,
    )


def answer_of(process: subprocess.Popen[str]) -> Answer:
    """Waits for a command's answer."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return Answer(process.returncode, out, err)


def run(*arguments: object, **options: Any) -> Answer:
    """Runs a command in a process of its own."""
    return answer_of(start(*arguments, **options))


def call(*arguments: object) -> Answer:
    """Runs a command in this process, and puts back what it changes in it."""
    out, err = io.StringIO(), io.StringIO()
    path, pipe = list(sys.path), signal.getsignal(signal.SIGPIPE)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(a) for a in arguments])
    finally:
        sys.path[:] = path
        signal.signal(signal.SIGPIPE, pipe)
    return Answer(status, out.getvalue(), err.getvalue())


def succeed(answer: Answer) -> Answer:
    """Returns the answer of a command that must have succeeded."""
    assert answer.status == 0, answer.err
    return answer


def assert_refused(answer: Answer, status: int, *said: str, notes: int = 0) -> None:
    """Asserts that a command failed as it should: its status, and one paragraph on stderr that says certain words.

    Other than on a terminal, a paragraph is one line. `notes` of them may stand before the error.
    """
    assert answer.status == status, answer.err
    assert answer.out == ""
    paragraphs = answer.err.splitlines()
    assert len(paragraphs) == notes + 1, answer.err
    assert paragraphs[-1].startswith("Error: "), answer.err
    for words in said:
        assert words in paragraphs[-1]


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits until something has happened while a process is running."""
    until = time.monotonic() + TIMEOUT_S
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
