"""Contestants as processes that take turns.

Each runs under its own interpreter and answers commands (`peers/protocol.py`). Between its turns a process is stopped,
threads and all, so that whoever has the turn has the machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import ROOT, LeftOutError

PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".peers"


@dataclass(frozen=True)
class Contestant:
    """Who takes part.

    Attributes:
        name: In the table.
        script: A file in `benchmarks/peers`.
        job: Which of the script's jobs.
        environment: The environment it needs, a folder in `.peers`; None for the one that measures.
    """

    name: str
    script: str
    job: str
    environment: str | None = None

    @property
    def python(self) -> Path:
        """The interpreter; raises `LeftOutError` when its environment is not there."""
        if self.environment is None:
            return Path(sys.executable)
        folder = ENVIRONMENTS / self.environment
        # The stamp is written when all pins are installed.
        if not (folder / ".installed").is_file():
            raise LeftOutError(f"{self.name} is left out: there is no environment for it. Make it with `make peers`.")
        return folder / "bin" / "python"


class Running:
    """A contestant's process, stopped but for its turns.

    Args:
        contestant: Who.
        digits: The file of digits, uint8 `[N, 784]`.
        folder: Where its log goes.

    Attributes:
        versions: What it says it is.
        ready_seconds: From its start until it was ready for its first turn.

    Raises:
        LeftOutError: It has no environment, or broke before it was ready.
    """

    def __init__(self, contestant: Contestant, digits: Path, folder: Path) -> None:
        self.name = contestant.name
        self.log = folder / f"{contestant.script}-{contestant.job}.log"
        interpreter = str(contestant.python)
        answers, pipe = os.pipe()
        # A peer's environment has its own packages and no others.
        unseen = () if contestant.environment is None else ("PYTHONPATH",)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [interpreter, str(PEERS / contestant.script), contestant.job, str(digits), str(pipe)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                cwd=folder,
                env={k: v for k, v in os.environ.items() if k not in unseen},
                pass_fds=(pipe,),
            )
        os.close(pipe)
        self.answers = os.fdopen(answers)
        began = time.perf_counter()
        try:
            self.versions: dict[str, str] = self._answer()["versions"]
        except BaseException:
            # Whoever interrupts this has nothing yet to close it by.
            self.close()
            raise
        self.ready_seconds = time.perf_counter() - began

    def __call__(self, command: str) -> dict[str, Any]:
        """Gives it a turn and returns what it answers."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        # If it has died, the answer says so.
        with suppress(BrokenPipeError):
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.answers.close()

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            self.close()
            said = self.log.read_text().strip().splitlines() or ["it said nothing"]
            raise LeftOutError(f"{self.name} is left out: it ended with status {self.process.returncode} ({said[-1]}).")
        self.process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running(
    contestants: Sequence[Contestant], digits: Path, folder: Path
) -> Iterator[tuple[dict[str, Running], list[str]]]:
    """Starts contestants, and yields those that are ready by name, and why the others are left out."""
    ready, left_out = {}, []
    with ExitStack() as stack:
        for contestant in contestants:
            try:
                one = Running(contestant, digits, folder)
            except LeftOutError as error:
                left_out.append(str(error))
                continue
            stack.callback(one.close)
            ready[contestant.name] = one
        yield ready, left_out
