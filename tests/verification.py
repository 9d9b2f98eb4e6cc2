"""Writes docs/verification.md: what each public part was held against, from the tests that did it.

A test says so itself,

    @pytest.mark.verifies(lb.objectives.IWAE, against="quadrature")

with one of the words in `EXACT`. Numbers of papers that were reproduced are read from `docs/results/*.json`, which
benchmark runs write: each file holds a list of

    {"parts": ["lowerbound.objectives.IWAE"], "paper": "Burda et al. (2016), table 1", "quantity": "-log p(x), nats",
     "theirs": 86.76, "ours": 86.9, "stderr": 0.1}

`python tests/verification.py` writes the page, and with `--check` it says whether the page is what it would write.
"""

import contextlib
import importlib
import inspect
import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import is_concrete

from lowerbound.flows import Flow, Flowed
from lowerbound.heads import Head, Likelihood
from lowerbound.objectives import Aggregate, Estimator, InverseMultiquadratic, Objective
from lowerbound.optimisers import Optimiser
from lowerbound.priors import Prior

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "verification.md"
RESULTS = ROOT / "docs" / "results"

EXACT = {
    "linear-Gaussian oracle": "the closed forms of a VAE whose decoder and posterior are linear (`tests/oracle.py`)",
    "closed form": "a formula for the answer in a special case",
    "quadrature": "an integral taken on a grid",
    "enumeration": "a sum over every value that there is",
    "autograd": "a Jacobian or gradient by automatic differentiation of something else",
    "finite differences": "a gradient by differences of values",
    "definition": "the definition written out again, naively",
    "scipy": "SciPy's own",
    "torch": "torch's own",
    "many digits": "the formula itself in hundreds of digits",
    "known truth": "draws from a distribution whose answer is known, within the error of the draws",
}

INTRODUCTION = """# Verification

What each public part was held against, and by which test: the tests say so themselves, with a marker that names the
part, and this page is made of the markers (`make verification`). A part is *not yet* verified where no test holds it
against an answer from elsewhere; it may still be tested: `tests/test_grid.py` combines every part with every other.

A number of a paper is quoted beside ours, from the records of the runs in `docs/results/`.

"""


def _any_of(*kinds: type) -> Callable[[object], bool]:
    return lambda part: inspect.isclass(part) and issubclass(part, kinds) and is_concrete(part)


def _posterior(part: object) -> bool:
    return _any_of(Head)(part) and not _any_of(Likelihood)(part)


# Title, module, and which of what the module has are parts.
SECTIONS: tuple[tuple[str, str, Callable[[object], bool]], ...] = (
    ("Models", "model", inspect.isclass),
    ("Likelihoods", "heads", _any_of(Likelihood)),
    ("Posteriors", "heads", _posterior),
    ("Priors", "priors", _any_of(Prior)),
    ("Flows", "flows", lambda part: inspect.isfunction(part) or _any_of(Flow, Flowed)(part)),
    ("Objectives", "objectives", _any_of(Objective)),
    (
        "Gradient estimators and other parts of objectives",
        "objectives",
        lambda part: inspect.isfunction(part) or _any_of(Estimator, Aggregate, InverseMultiquadratic)(part),
    ),
    ("Optimisers", "optimisers", _any_of(Optimiser)),
    ("Evidence", "evidence", inspect.isfunction),
    ("Metrics", "metrics", inspect.isfunction),
    ("Disentanglement", "disentanglement", inspect.isfunction),
)


def public_parts() -> dict[str, list[str]]:
    """Returns the public names of the parts in each section."""
    return {title: sorted(_parts_in(module, wanted)) for title, module, wanted in SECTIONS}


def _parts_in(module: str, wanted: Callable[[object], bool]) -> Iterator[str]:
    home = importlib.import_module(f"lowerbound.{module}")
    own = [name for name, value in vars(home).items() if getattr(value, "__module__", None) == home.__name__]
    for name in getattr(home, "__all__", own):
        if not name.startswith("_") and wanted(getattr(home, name)):
            yield f"lowerbound.{module}.{name}"


def public_name(part: Any) -> str:
    """Returns the name under which a part is known: the module it lies in may be split."""
    return ".".join([*part.__module__.split(".")[:2], part.__qualname__])


class Markers:
    """A pytest plugin that keeps what the collected tests say they verify.

    Attributes:
        found: For each part the tests, as (file, test), and what they hold it against.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)

    def pytest_collection_modifyitems(self, items: Iterable[pytest.Item]) -> None:
        for item in items:
            for marker in item.iter_markers("verifies"):
                for part in marker.args:
                    test = item.path.relative_to(ROOT).as_posix(), getattr(item, "originalname", item.name)
                    self.found[public_name(part)][test] = marker.kwargs["against"]


def collected() -> Markers:
    """Returns the markers of all tests, by pytest's own collection.

    Raises:
        SystemExit: A test file cannot be imported.
    """
    markers, said = Markers(), io.StringIO()
    with contextlib.redirect_stdout(said):
        options = ["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT)]
        status = pytest.main([*options, str(ROOT / "tests")], plugins=[markers])
    if status != pytest.ExitCode.OK:
        raise SystemExit(said.getvalue())
    return markers


def reproduced(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the papers' numbers that were reproduced, by part."""
    by_part: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        entries = json.loads(path.read_text())
        # A benchmark that reproduces no paper keeps its results in another shape.
        for entry in entries if isinstance(entries, list) else ():
            for part in entry["parts"] if entry.get("theirs") is not None else ():
                by_part[part].append(entry)
    return by_part


def page(verified: dict[str, dict[tuple[str, str], str]], papers: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the page.

    Raises:
        SystemExit: Something that is no public part is said to be verified, or against a word that is not in `EXACT`.
    """
    sections = public_parts()
    known = {part for parts in sections.values() for part in parts}
    if strangers := sorted({*verified, *papers} - known):
        raise SystemExit(f"Said to be verified, but no public part of a section: {', '.join(strangers)}.")
    if words := sorted({a for tests in verified.values() for a in tests.values()} - set(EXACT)):
        raise SystemExit(f"Unknown words for what a part is held against: {', '.join(words)}; see EXACT.")
    counted = f"Of {len(known)} parts, {len(verified)} are held against an exact answer"
    counted += f" and {len(papers)} against a paper's number."
    words_table = "\n".join(f"| {word} | {meaning} |" for word, meaning in EXACT.items())
    text = f"{INTRODUCTION}{counted}\n\n| held against | which is |\n|---|---|\n{words_table}\n"
    for title, parts in sections.items():
        rows = "\n".join(_row(part, verified.get(part, {}), papers.get(part, [])) for part in parts)
        text += f"\n## {title}\n\n| part | exact | a paper's number | tests |\n|---|---|---|---|\n{rows}\n"
    return text


def _row(part: str, tests: dict[tuple[str, str], str], papers: list[dict[str, Any]]) -> str:
    against = ", ".join(word for word in EXACT if word in tests.values()) or "not yet"
    numbers = "; ".join(_quoted(entry) for entry in papers) or "not yet"
    files: dict[str, list[str]] = defaultdict(list)
    for file, test in sorted(tests):
        files[file].append(f"`{test}`")
    named = "; ".join(f"[{Path(file).name}](../{file}): {', '.join(names)}" for file, names in files.items())
    return f"| `{part.removeprefix('lowerbound.')}` | {against} | {numbers} | {named} |"


def _quoted(entry: dict[str, Any]) -> str:
    error = f" ± {entry['stderr']:.2g}" if "stderr" in entry else ""
    return f"{entry['quantity']}: theirs {entry['theirs']:g}, ours {entry['ours']:.4g}{error} ({entry['paper']})"


def main(arguments: list[str]) -> int:
    """Writes the page, or checks it; returns the exit status."""
    text = page(collected().found, reproduced(RESULTS))
    if arguments == ["--check"]:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("" if same else f"{PAGE} is not what the tests say. Run `make verification` and commit it.")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
