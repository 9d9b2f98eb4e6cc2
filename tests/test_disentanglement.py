"""Scores of disentanglement on codes whose scores are known."""

import importlib.util
import math

import pytest
import torch

from lowerbound import disentanglement as lb_disentanglement
from lowerbound.data import Factors, generator
from lowerbound.disentanglement import (
    Disentanglement,
    dci,
    disentanglement,
    factor_vae_score,
    info_mec,
    mutual_information_gap,
    sap,
)
from lowerbound.errors import ResourceError, UsageError

N = 2000


def truth(n: int = N) -> Factors:
    draws = generator(1)
    kind = torch.randint(5, (n,), generator=draws).float()
    rest = torch.rand(n, 2, generator=draws)
    return Factors(("kind", "angle", "defocus"), torch.cat([kind[:, None], 180 * rest - 90], 1), (True, False, False))


def standardised(factors: Factors) -> torch.Tensor:
    v = factors.values
    return (v - v.mean(0)) / v.std(0)


def noise(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def perfect() -> torch.Tensor:
    return standardised(truth()) + 0.01 * noise(N, 3)


def rotated() -> torch.Tensor:
    """All three factors in all three components alike."""
    q = torch.tensor([[1, 1, 1], [1, -1, 0.0], [1, 1, -2]])
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator(3)))
    return standardised(truth()) @ torch.nn.functional.normalize(q, dim=1) @ turned


@pytest.fixture(scope="module")
def scores() -> dict[str, Disentanglement]:
    z = perfect()
    codes = {
        "perfect": z,
        "rotated": rotated(),
        "twice": torch.cat([z, z + 0.01 * noise(N, 3, seed=4)], 1),
        "noise": noise(N, 3),
        "merged": torch.stack([z[:, 0], z[:, 1], (z[:, 2] + z[:, 1]) / math.sqrt(2)], 1),
    }
    return {name: disentanglement(code, truth()) for name, code in codes.items()}


@pytest.mark.verifies(disentanglement, dci, sap, factor_vae_score, info_mec, against="known truth")
def test_a_component_for_each_factor_scores_one(scores):
    found = scores["perfect"].to_json()
    assert set(found) == {
        "mig", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap", "factor_vae",
        "info_m", "info_c", "info_e",
    }  # fmt: skip
    for name, value in found.items():
        assert 0.88 < value <= 1 + 1e-9, name


def test_a_rotation_entangles_and_loses_nothing(scores):
    found = scores["rotated"]
    assert found.mig < 0.2
    assert found.sap < 0.45
    assert found.dci_disentanglement < 0.4
    assert found.dci_completeness < 0.4
    assert found.info_m < 0.5
    assert found.info_c < 0.5
    assert found.dci_informativeness > 0.7
    assert found.info_e > 0.85  # a linear model turns it back


def test_a_code_twice_is_modular_but_not_compact(scores):
    found, once = scores["twice"], scores["perfect"]
    assert found.info_m == pytest.approx(once.info_m, abs=0.03)
    assert found.info_c < 0.5
    assert found.mig < 0.1
    assert found.sap < 0.1
    assert found.dci_disentanglement > 0.95
    assert found.factor_vae > 0.95
    assert found.info_e > 0.95


def test_noise_knows_nothing(scores):
    found = scores["noise"]
    assert found.mig < 0.03
    assert found.sap < 0.03
    assert found.dci_informativeness < 0.15
    assert found.info_e < 0.02
    assert found.factor_vae < 0.5  # guessing is 1/3


def test_a_component_with_two_factors_lowers_modularity(scores):
    found, once = scores["merged"], scores["perfect"]
    assert found.info_m < once.info_m - 0.05
    assert found.dci_disentanglement < once.dci_disentanglement - 0.05
    assert found.info_e > 0.9


def test_each_alone_is_what_all_together_say(scores):
    z, factors, found = perfect(), truth(), scores["perfect"]
    assert mutual_information_gap(z, factors) == found.mig
    assert dci(z, factors) == (found.dci_disentanglement, found.dci_completeness, found.dci_informativeness)
    assert sap(z, factors) == found.sap
    assert factor_vae_score(z, factors) == found.factor_vae
    assert info_mec(z, factors) == (found.info_m, found.info_c, found.info_e)


@pytest.mark.verifies(mutual_information_gap, against="enumeration")
def test_the_gap_is_exact_where_mutual_information_can_be_counted():
    # Two kinds, uniform and independent; z_0 is the first, z_1 the sum of both.
    first, second = torch.arange(400) % 2, torch.arange(400) // 2 % 2
    factors = Factors(("a", "b"), torch.stack([first, second], 1).float(), (True, True))
    codes = torch.stack([first, first + second], 1).float()
    # I(z_0; a) = log 2, I(z_1; a) = I(z_1; b) = log 2 / 2, I(z_0; b) = 0.
    assert mutual_information_gap(codes, factors) == pytest.approx((0.5 + 0.5) / 2, abs=1e-12)


def test_importances_are_scored_by_their_entropies():
    even = lb_disentanglement._concentrated(torch.ones(3, 4).numpy())
    assert even == pytest.approx(0, abs=1e-9)
    assert lb_disentanglement._concentrated(torch.eye(3).numpy()) == pytest.approx(1)
    # One row in use, divided between two of four columns: 1 - log 2 / log 4.
    one = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]]).numpy()
    assert lb_disentanglement._concentrated(one) == pytest.approx(0.5)


def test_shares_are_scored_against_an_even_share():
    shared = torch.tensor([[0.6, 0.2, 0.2], [0, 0, 0]]).numpy()
    assert lb_disentanglement._dominant(shared) == pytest.approx(((0.6 + 1 / 3) / 2 - 1 / 3) / (2 / 3))
    assert lb_disentanglement._dominant(torch.ones(3, 1).numpy()) == 1


def test_no_score_asks_how_components_are_ordered_or_scaled():
    z, factors = perfect(), truth()
    changed = z[:, [2, 0, 1]] * torch.tensor([3.0, 1.0, -2.0]) + 1
    found, expected = disentanglement(changed, factors), disentanglement(z, factors)
    for name, value in expected.to_json().items():
        assert found.to_json()[name] == pytest.approx(value, abs=0.02), name


def test_a_component_that_is_not_in_use_counts_for_nothing():
    z, factors = perfect(), truth()
    idle = torch.cat([z, 1e-3 * noise(N, 1, seed=9), torch.zeros(N, 1)], 1)
    found, expected = disentanglement(idle, factors), disentanglement(z, factors)
    assert found.info_m == pytest.approx(expected.info_m, abs=1e-6)
    assert found.info_c == pytest.approx(expected.info_c, abs=0.05)
    assert found.dci_disentanglement > 0.95
    assert found.factor_vae > 0.95
    dead = disentanglement(torch.zeros(N, 2), factors)
    assert (dead.mig, dead.sap, dead.factor_vae, dead.info_m, dead.info_e) == (0, 0, 0, 0, 0)


def test_codes_that_do_not_fit_are_refused():
    factors = truth()
    for codes, wrong in (
        (torch.zeros(N - 1, 2), factors),
        (torch.zeros(50, 2), truth(50)),
        (torch.zeros(N), factors),
        (torch.zeros(N, 2), Factors(("kind",), factors.values[:, :1], (True,))),
    ):
        with pytest.raises(UsageError, match="at least 200"):
            disentanglement(codes, wrong)
    with pytest.raises(UsageError, match="known and finite"):
        disentanglement(torch.full((N, 2), math.nan), factors)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else find(name, *a))
    with pytest.raises(ResourceError, match=r"pip install 'lowerbound\[demo\]'"):
        disentanglement(perfect(), truth())
