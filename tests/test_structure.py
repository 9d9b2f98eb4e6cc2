"""What must be true of the source itself: imports go one way, the public names exist, importing changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lowerbound

SOURCE = Path(lowerbound.__file__).parent
# Top to bottom: a module imports only what stands above it.
LAYERS = (
    "errors", "spec", "data", "nn", "distributions", "discrete", "mixed", "flows", "heads", "priors", "model",
    "objectives", "optimisers", "training", "evidence", "metrics", "disentanglement", "tasks", "imputation",
    "evaluation", "scoring", "recipes", "checkpoint", "figures", "trackers", "experiment", "cli",
)  # fmt: skip


def module_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported_by(path: Path) -> set[str]:
    """The modules of this package that a file imports, also inside functions and through `lb.name`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lowerbound":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lowerbound.")}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lb":
            found.add(lowerbound._HOME.get(node.attr, node.attr))
    return found - {"__version__"}


FILES = [p for p in SOURCE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py") or p.parent != SOURCE]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    layer = LAYERS.index(module_of(path))
    upwards = {name for name in imported_by(path) if LAYERS.index(name) > layer}
    assert not upwards, f"{module_of(path)} stands above {upwards} and must not import them"


def test_every_module_has_its_place_in_the_order():
    assert {module_of(p) for p in FILES} == set(LAYERS)


def test_the_public_names_are_there_sorted_and_the_same_to_a_type_checker():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    guarded = next(n for n in tree.body if isinstance(n, ast.If))
    typed = {a.name: n.module for n in guarded.body for a in n.names}
    homes = {name: f"lowerbound.{home}" for name, home in lowerbound._HOME.items()}
    assert typed == homes | dict.fromkeys(lowerbound._MODULES, "lowerbound")
    assert set(lowerbound.__all__) == set(typed)
    for name in lowerbound.__all__:
        assert getattr(lowerbound, name) is not None
    assert set(lowerbound.__all__) <= set(dir(lowerbound))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lowerbound.nothing


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_changes_nothing_global():
    run_python("""
import logging, random, torch
def world():
    return (list(logging.root.handlers), random.getstate(), torch.get_rng_state().tolist(),
            torch.distributions.Distribution._validate_args, torch.get_default_dtype(), torch.get_num_threads())
before = world()
import lowerbound
for name in lowerbound.__all__:
    getattr(lowerbound, name)
assert world() == before
""")


def test_the_command_line_can_be_built_without_waiting_for_torch():
    run_python("""
import sys, lowerbound, lowerbound.recipes
from lowerbound.cli.app import build_app
build_app()
assert not {"torch", "matplotlib", "numpy"} & set(sys.modules)
""")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_readable_and_only_the_command_line_prints(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    assert text.startswith(('"""', 'r"""')), "a module opens with what it is about"
    if module_of(path) != "cli":
        calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
        assert not [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
