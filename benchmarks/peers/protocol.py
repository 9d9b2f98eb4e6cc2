"""How a contestant is spoken to: one command a line in, one JSON document a line out.

A contestant is a process of its own, under whatever interpreter has what it needs; this module asks for nothing but the
standard library. It prepares itself, says that it is ready, and waits. A command is a word and whole numbers,

    epoch 60000 400

and the answer holds the seconds that it took by the contestant's own clock, the seconds of processor time that all of
its threads spent, and whatever else the command found:

    {"seconds": 3.81, "processor_seconds": 7.52, "loss": 142.8}

Answers go through a pipe of their own, so that nothing that a library prints can be taken for one. When its input ends,
the process ends.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Command = Callable[..., Mapping[str, Any] | None]


def arguments(*jobs: str) -> argparse.Namespace:
    """Returns the contestant's arguments: the job, the file of digits (uint8 `[N, 784]`), the pipe for answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=jobs)
    parser.add_argument("digits", type=Path)
    parser.add_argument("pipe", type=int)
    return parser.parse_args()


class Line:
    """The line to whoever measures."""

    def __init__(self, pipe: int) -> None:
        self._out = os.fdopen(pipe, "w", buffering=1)

    def answer(self, **found: Any) -> None:
        self._out.write(json.dumps(found) + "\n")

    def take(self) -> tuple[str, list[int]]:
        """Waits for a command; raises `SystemExit` when there will be no more."""
        words = sys.stdin.readline().split()
        if not words:
            raise SystemExit(0)
        return words[0], [int(word) for word in words[1:]]


class Watch:
    """Reads the clocks since it was made."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self.wall,
            "processor_seconds": time.process_time() - self.processor,
        }


def serve(pipe: int, commands: Mapping[str, Command], **versions: str) -> None:
    """Answers commands until there are no more."""
    line = Line(pipe)
    line.answer(versions=versions)
    while True:
        name, numbers = line.take()
        if name == "memory":
            line.answer(peak_bytes=peak_bytes())
            continue
        watch = Watch()
        found = commands[name](*numbers) or {}
        line.answer(**watch.read(), **found)


def peak_bytes() -> int:
    """Returns the most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
