"""`python -m lowerbound` is the command line."""

from lowerbound.cli import run

if __name__ == "__main__":
    run()
