"""The table of what was verified is what the tests say, and says it of every part."""

import json
import subprocess
import sys

import pytest
import torch
from verification import EXACT, PAGE, ROOT, page, public_parts, reproduced

import lowerbound as lb
from lowerbound.data import generator
from lowerbound.metrics import active_units, principal_plane


def test_the_committed_table_is_the_one_that_the_tests_make():
    done = subprocess.run(
        [sys.executable, "tests/verification.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_part_is_in_the_table():
    text = PAGE.read_text(encoding="utf-8")
    bases = ("Conditional", "Head", "Likelihood", "Quantiser")
    parts = [part for section in public_parts().values() for part in section]
    assert len(parts) > 50
    assert not [part for part in parts if f"| `{part.removeprefix('lowerbound.')}` |" not in text]
    assert set(parts) >= {
        *(f"lowerbound.heads.{n}" for n in lb.heads.__all__ if n not in bases),
        *(f"lowerbound.flows.{n}" for n in lb.flows.__all__ if n != "Flow"),
    }


def test_a_papers_number_stands_beside_ours(tmp_path):
    entry = {"parts": ["lowerbound.objectives.IWAE"], "paper": "A (2016)", "quantity": "-log p(x), nats"}
    (tmp_path / "run.json").write_text(json.dumps([entry | {"theirs": 86.76, "ours": 86.9, "stderr": 0.1}]))
    lines = page({}, reproduced(tmp_path)).splitlines()
    (row,) = [line for line in lines if line.startswith("| `objectives.IWAE` |")]
    assert "| not yet | -log p(x), nats: theirs 86.76, ours 86.9 ± 0.1 (A (2016)) |" in row


def test_what_is_no_part_and_what_is_no_answer_are_refused():
    test = ("tests/x.py", "test_x")
    with pytest.raises(SystemExit, match=r"no public part.*lowerbound\.objectives\.Terms"):
        page({"lowerbound.objectives.Terms": {test: next(iter(EXACT))}}, {})
    with pytest.raises(SystemExit, match="hearsay"):
        page({"lowerbound.objectives.IWAE": {test: "hearsay"}}, {})


@pytest.mark.verifies(lb.metrics.active_units, against="definition")
def test_active_units_are_those_whose_mean_varies():
    spread = torch.tensor([0.0, 0.05, 0.0999, 0.1001, 3.0], dtype=torch.float64)
    steps = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) * (3 / 4) ** 0.5  # of variance 1
    found = active_units(7 + steps[:, None] * spread)
    assert found.tolist() == [False, False, False, True, True]
    assert active_units(7 + steps[:, None] * spread, threshold=1e-4).tolist() == [False, True, True, True, True]


@pytest.mark.verifies(lb.metrics.principal_plane, against="torch")
def test_the_principal_plane_is_that_of_the_singular_vectors():
    points = torch.randn(50, 6, generator=generator(0)) * torch.tensor([0.1, 5.0, 1.0, 0.2, 2.0, 0.5]) + 3
    plane, share = principal_plane(points)
    _, values, vectors = torch.linalg.svd((points - points.mean(0)).double(), full_matrices=False)
    expected = (points - points.mean(0)).double() @ vectors[:2].T
    assert plane.shape == (50, 2)
    assert share == pytest.approx((values[:2].square().sum() / values.square().sum()).item(), rel=1e-5)
    for column in range(2):
        cosine = torch.nn.functional.cosine_similarity(plane[:, column].double(), expected[:, column], dim=0)
        assert abs(cosine.item()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(principal_plane(points[:, :2])[0], points[:, :2])
