"""What can go wrong, and the exit status the command line gives it.

```
LowerboundError
├── UsageError        2   an impossible setting, an unknown name (also a ValueError)
├── DataError         3   a source that is unknown, broken, unobtainable, or holds impossible values
├── CheckpointError   4   what is no run folder, or a damaged one
├── DivergedError     5   a loss that is no number any more
└── ResourceError     6   a full disk, too little memory, a folder in use, a missing optional package
```

A message is one paragraph: what was expected, what was found, what to do.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class LowerboundError(Exception):
    """Anything that a user can mend; `exit_status` is what the command line returns for it."""

    exit_status = 1


class UsageError(LowerboundError, ValueError):
    """A setting that cannot be, or a combination that means nothing."""

    exit_status = 2


class DataError(LowerboundError):
    """A source that is unknown, broken or unobtainable, or that holds impossible values."""

    exit_status = 3


class CheckpointError(LowerboundError):
    """A folder that is no run, or a run that is damaged."""

    exit_status = 4


class DivergedError(LowerboundError):
    """Training reached a loss that is not a finite number."""

    exit_status = 5


class ResourceError(LowerboundError):
    """The machine refused: a full disk, too little memory, a folder in use, an optional package that is not there."""

    exit_status = 6


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a sentence that names the nearest known names, or all of them when none is near.

    Example:
        >>> did_you_mean("minst", ["mnist", "digits"])
        'Did you mean mnist?'
        >>> did_you_mean("qqq", ["mnist", "digits"])
        'There are: digits, mnist.'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(known)}."


@contextmanager
def disk_errors(path: Path, rescue: str = "run the same command again") -> Iterator[None]:
    """Turns what the disk refuses into a `ResourceError` that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "Free some space" if full else "Check that it can be written"
        raise ResourceError(
            f"{path} could not be written: {error.strerror or error}. {advice} and {rescue}; what was saved before is "
            "intact."
        ) from error
