"""The application: its verbs, and what every failure turns into."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress

import cyclopts

import lowerbound
from lowerbound.cli import judge, listing, make, score, tables, train
from lowerbound.cli.show import print_error, print_note
from lowerbound.errors import LowerboundError, ResourceError

_EPILOGUE = """Begin here (real digits, offline, half a minute):

  lowerbound train mlp --data mnist-5k --out runs/first
  lowerbound evaluate runs/first --samples 1000
  lowerbound sample runs/first --n 64 --out samples.png

Exit status: 0 done, 1 our bug, 2 usage, 3 data, 4 checkpoint, 5 diverged,
6 resource (disk, memory, lock, missing package), 75 stopped by a signal and
saved, 130 interrupted.
"""
_INTERRUPTED = 130
_TORCH_LACKS = ("can't allocate memory", "not enough memory")
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def build_app() -> cyclopts.App:
    """Builds the application without importing torch."""
    app = cyclopts.App(
        name="lowerbound",
        help="Train, judge, explore and ship variational autoencoders.",
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        version=f"lowerbound {lowerbound.__version__}",
        default_parameter=cyclopts.Parameter(negative=()),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    app.command(train.build_train_app(), name="train")
    for verb in (
        judge.evaluate,
        judge.compare,
        make.sample,
        make.reconstruct,
        make.encode,
        make.interpolate,
        tables.impute,
        score.score,
    ):
        app.command(verb)
    app.command(listing.recipes)
    app.command(listing.data)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # A reader that closes the pipe (`| head`) ends the program quietly, as it does every other.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    shown = warnings.showwarning
    try:
        app = build_app()
        # What the library warns of is a remark to a user, not a line of its source.
        warnings.showwarning = lambda message, *rest: print_note(f"Note: {message}.")
        status = app(train.prepared(app, given), exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        source = train.config_of(given)
        hint = f" Some of the options are from {source[0]}." if source else ""
        print_error(" ".join(str(error).split()) + hint)
        return 2
    except LowerboundError as error:
        print_error(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except Exception as error:
        if _is_lack_of_memory(error):
            # What fills the memory hangs on the frames that failed, and even this message needs some.
            error.__traceback__ = error.__context__ = None
            print_error(_no_memory(error, given))
            return ResourceError.exit_status
        traceback.print_exc()
        print_error("This is a bug in lowerbound. Please report it with the lines above.")
        return 1
    finally:
        warnings.showwarning = shown
    return status if isinstance(status, int) else 0


def _no_memory(error: Exception, given: Sequence[str]) -> str:
    said = (str(error) or type(error).__name__).splitlines()[0].rpartition("DefaultCPUAllocator: ")[2]
    training = "A smaller --batch-size, network or picture needs less; --resume goes on from the last checkpoint."
    todo = training if given[:1] == ["train"] else "Ask for less at a time, or use a machine with more."
    return f"There is not enough memory for this ({said}). Nothing that was saved is lost. {todo}"


def _is_lack_of_memory(error: Exception) -> bool:
    # torch has a class for a full accelerator; for the processor's memory it has but a text.
    lacks = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return lacks or (isinstance(error, RuntimeError) and any(text in str(error) for text in _TORCH_LACKS))


def run() -> None:
    """The console script."""
    # GNU OpenMP reads this when torch loads it. Its threads otherwise spin for a millisecond whenever they wait for one
    # another: where another process wants the cores as well, that cost all but a thirtieth of the speed. So short a
    # spin costs nothing on an idle machine (both measured on two cores).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Arrow's own allocator reserves some 900 MB of addresses before it needs any, which a limit on them (`ulimit -v`, a
    # cluster's) counts as memory. The system's reads a table no slower (measured: 4.7 s against 6.4).
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    _keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding has no letters for
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed for what is asked for next.

    It otherwise gives blocks of some megabytes back to the system each time, and gets them anew page by page: with four
    of them, an operation on log-densities took up to fifteen times as long (measured), and a training step with several
    draws a sixth longer. Whoever sets glibc's own variables is left alone, and so is a process whose address space is
    limited (`ulimit -v`, a cluster's): what is kept lies in pieces, and takes addresses that may be wanted elsewhere.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ) or _addresses_are_limited():
        return
    with suppress(AttributeError, OSError, TypeError):  # another C library, or none of its own
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def _addresses_are_limited() -> bool:
    try:
        import resource
    except ImportError:  # not a Unix
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
