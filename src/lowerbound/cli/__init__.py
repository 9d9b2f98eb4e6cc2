"""The command line: verbs that parse, call public functions, and print. Nothing else in this package prints.

torch takes over a second to import, so every command imports what it needs when it runs: `--help` never waits for it.
"""

from lowerbound.cli.app import main, run

__all__ = ["main", "run"]
