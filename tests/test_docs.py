"""Documentation is true: its Python runs, its commands parse, its links and pictures are there."""

import re
import shlex
from pathlib import Path

import pytest

from lowerbound.cli.app import build_app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text()) if kind == language]


PYTHON = [pytest.param(code, id=f"{p.name}-{i}") for p in PAGES for i, code in enumerate(blocks(p, "python"))]
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES
        for kind in ("", "sh", "bash")
        for body in blocks(page, kind)
        for line in body.replace("\\\n", " ").splitlines()
        if re.match(r"^\s*(\w+=\S+ )*lowerbound \w", line)
    }
)


@pytest.mark.parametrize("code", PYTHON)
def test_python_in_the_documentation_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "documentation", "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_in_the_documentation_parse(line):
    words = shlex.split(re.sub(r"^(\w+=\S+ )*lowerbound ", "", line))
    build_app().parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert not missing


def test_every_verb_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    verbs = [name for name in build_app() if not name.startswith("-")]
    assert not [v for v in verbs if f"lowerbound {v}" not in text]
