r"""How well the components of z recover the true factors of the data, where those are known.

Codes are the means of q(z|x), `[N, D]`; factors are `lowerbound.data.Factors`, kinds or quantities. A code is
*disentangled* (modular) if each component depends on one factor, and *compact* (complete) if each factor is in one
component. No score says both, and the literature uses several, so here are five. That the right model is found without
any labels is not to be expected in general: for each disentangled z there is an entangled one with the same p(x)
(Locatello et al., 2019, theorem 1).

With \(I(z_i; v_k)\) the mutual information of a component and a factor and \(H(v_k)\) the factor's entropy:

* **MIG** (Chen, Li, Grosse and Duvenaud, 2018): \(\frac1F \sum_k \frac{1}{H(v_k)} \big(I(z_{(1)}; v_k) -
  I(z_{(2)}; v_k)\big)\), the best component of each factor against the second best.
* **DCI** (Eastwood and Williams, 2018): each factor is predicted from all components, and \(R_{ik}\) is how important
  component i was for factor k. With \(P_{ik} = R_{ik} / \sum_k R_{ik}\), disentanglement is \(\sum_i \rho_i (1 -
  H_F(P_{i\cdot}))\), entropies to the base F, \(\rho_i\) a component's share of all importance; completeness is the
  same over the components of each factor, informativeness the predictions' own score.
* **SAP** (Kumar, Sattigeri and Balakrishnan, 2018): as MIG, with how well a factor is predicted from one component by a
  line, or by thresholds if it is a kind.
* **FactorVAE score** (Kim and Mnih, 2018): examples that share a factor vary least, relative to all examples, in the
  component that codes it; the accuracy of telling the factor from the component.
* **InfoMEC** (Hsu, Dorrell, Whittington, Wu and Finn, 2023, "Disentanglement via latent quantization"): with
  \(N_{ik} = I(z_i; v_k) / H(v_k)\), modularity is the mean over components of \(\max_k N_{ik} / \sum_k N_{ik}\),
  compactness the mean over factors of \(\max_i N_{ik} / \sum_i N_{ik}\), both moved so that an even share is 0;
  explicitness is how much of each factor a linear model can read off the code.

All are 1 at best. MIG, SAP and InfoMEC's first two are near 0 for codes that know nothing or share everything evenly;
the FactorVAE score is then about 1/F.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from lowerbound.data import Factors
from lowerbound.errors import ResourceError, UsageError

# Fewer examples than these leave a bin of a quantity with next to none.
FEWEST = 200
_BINS = 20
_NEIGHBOURS = 10
# The FactorVAE score: votes to learn from and to judge by, and the examples behind each.
_VOTES = 2000
_SHARING = 64
# A component whose codes range over less than this share of the widest range is not in use (Hsu et al., 2023).
_ACTIVE_RANGE = 1 / 20

Array = np.ndarray


@dataclass(frozen=True)
class Disentanglement:
    """The scores (module docstring), each at most 1.

    Attributes:
        mig: The mutual information gap.
        dci_disentanglement: Whether each component is important for one factor.
        dci_completeness: Whether each factor has one important component.
        dci_informativeness: How well factors are predicted from all components: the mean of the share of the variance
            of quantities, and of the accuracy for kinds, on examples that were not learned from.
        sap: The separated attribute predictability.
        factor_vae: The FactorVAE score.
        info_m: InfoMEC's modularity.
        info_c: InfoMEC's compactness.
        info_e: InfoMEC's explicitness.
    """

    mig: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float
    sap: float
    factor_vae: float
    info_m: float
    info_c: float
    info_e: float

    def to_json(self) -> dict[str, float]:
        """Returns the scores by name."""
        return asdict(self)


def disentanglement(codes: Tensor, factors: Factors, seed: int = 0) -> Disentanglement:
    """Measures all scores.

    Args:
        codes: Means of q(z|x), `[N, D]`, finite.
        factors: The true factors of the same examples, at least two, all known.
        seed: Seeds the trees, the votes, the neighbours' tie-breaking and which half is learned from.

    Raises:
        UsageError: Codes and factors do not fit, there are fewer than 200 examples, or fewer than 2 factors.
        ResourceError: scikit-learn is not installed.

    Example:
        >>> import torch
        >>> from lowerbound.data import Factors, generator
        >>> truth = torch.rand(1000, 2, generator=generator(0))
        >>> scores = disentanglement(truth, Factors(("angle", "focus"), truth, (False, False)))
        >>> scores.dci_disentanglement > 0.95, scores.info_m > 0.9, scores.sap > 0.9
        (True, True, True)
    """
    z, v = _checked(codes, factors)
    known = _classes(v, factors.discrete)
    d, c, i = _dci(z, v, factors.discrete, seed)
    modular, compact, explicit = _info_mec(z, v, known, factors.discrete, seed)
    return Disentanglement(
        mig=_mig(z, known),
        dci_disentanglement=d,
        dci_completeness=c,
        dci_informativeness=i,
        sap=_sap(z, v, factors.discrete, seed),
        factor_vae=_factor_vae(z, known, seed),
        info_m=modular,
        info_c=compact,
        info_e=explicit,
    )


def mutual_information_gap(codes: Tensor, factors: Factors) -> float:
    """Returns MIG (Chen et al., 2018).

    Mutual information is that of 20 bins of equal frequency, of components and of quantities, where the paper has the
    density of draws from q(z|x) and Locatello et al. (2019) have bins of equal width: frequencies do not ask how z is
    scaled, and no single outlier empties the other bins.

    Args:
        codes: Means of q(z|x), `[N, D]`.
        factors: The true factors of the same examples.
    """
    z, v = _checked(codes, factors)
    return _mig(z, _classes(v, factors.discrete))


def dci(codes: Tensor, factors: Factors, seed: int = 0) -> tuple[float, float, float]:
    """Returns disentanglement, completeness and informativeness (Eastwood and Williams, 2018).

    Factors are predicted by scikit-learn's gradient-boosted trees, as in Locatello et al. (2019), with its settings as
    they come: the paper has random forests or a lasso. Quantities are regressed, not binned. As there, the mean over
    the factors that is completeness is weighted by their share of all importance.

    Args:
        codes: Means of q(z|x), `[N, D]`.
        factors: The true factors of the same examples.
        seed: Seeds the trees, and which half of the examples is learned from.
    """
    z, v = _checked(codes, factors)
    return _dci(z, v, factors.discrete, seed)


def sap(codes: Tensor, factors: Factors, seed: int = 0) -> float:
    """Returns SAP (Kumar et al., 2018).

    A quantity is scored by the squared correlation. A kind is told by as many thresholds as are needed, which a
    decision tree finds, and scored by the balanced accuracy on examples that were not learned from, moved so that
    guessing is 0 (a departure: the paper does not move it, and 1 could then not be reached).

    Args:
        codes: Means of q(z|x), `[N, D]`.
        factors: The true factors of the same examples.
        seed: Seeds which half of the examples is learned from.
    """
    z, v = _checked(codes, factors)
    return _sap(z, v, factors.discrete, seed)


def factor_vae_score(codes: Tensor, factors: Factors, seed: int = 0) -> float:
    """Returns the FactorVAE score (Kim and Mnih, 2018).

    The paper renders new examples with one factor held fixed. Here they are drawn from those at hand, and a quantity is
    fixed to within a twentieth of its distribution. The majority vote is learned from 2,000 votes and judged by as many
    others; each takes 64 examples.

    Args:
        codes: Means of q(z|x), `[N, D]`.
        factors: The true factors of the same examples.
        seed: Seeds the votes.
    """
    z, v = _checked(codes, factors)
    return _factor_vae(z, _classes(v, factors.discrete), seed)


def info_mec(codes: Tensor, factors: Factors, seed: int = 0) -> tuple[float, float, float]:
    """Returns modularity, compactness and explicitness (Hsu et al., 2023).

    Mutual information is estimated from the 10 nearest neighbours (Ross, 2014; scikit-learn), as in the authors'
    program, and components whose codes range over less than a twentieth of the widest range are left out. Quantities,
    which the paper has none of, are 20 bins of equal frequency there. For explicitness a kind is predicted by logistic
    regression (nearly without penalty), and the score is the share of its entropy that is explained; for a quantity
    predicted by linear regression the same ratio is the share of the variance (Xu et al., 2020).

    With a single active component there is nothing that a factor could be spread over, and compactness is 1; a factor
    that no component knows counts as 0.

    Args:
        codes: Means of q(z|x), `[N, D]`.
        factors: The true factors of the same examples.
        seed: Seeds the estimator's tie-breaking.
    """
    z, v = _checked(codes, factors)
    return _info_mec(z, v, _classes(v, factors.discrete), factors.discrete, seed)


def _checked(codes: Tensor, factors: Factors) -> tuple[Array, Array]:
    if importlib.util.find_spec("sklearn") is None:
        raise ResourceError(
            "How well factors are recovered is measured with scikit-learn, which is not installed. Install it with: "
            "pip install 'lowerbound[demo]'"
        )
    z, v = codes.detach().double().cpu().numpy(), factors.values.double().cpu().numpy()
    if z.ndim != 2 or len(z) != len(v) or len(z) < FEWEST or v.shape[1] < 2:
        raise UsageError(
            f"The recovery of factors is measured on codes [N, D] and at least 2 factors of the same N examples, at "
            f"least {FEWEST}; got codes of shape {tuple(z.shape)} and factors of shape {tuple(v.shape)}."
        )
    if not (np.isfinite(z).all() and np.isfinite(v).all()):
        raise UsageError("The recovery of factors is measured where codes and factors are all known and finite.")
    return z, v


def _classes(v: Array, discrete: tuple[bool, ...]) -> Array:
    """Returns factors as whole numbers from 0: kinds as they are numbered, quantities by bins of equal frequency."""
    columns = [
        np.unique(column, return_inverse=True)[1] if kind else _binned(column)
        for column, kind in zip(v.T, discrete, strict=True)
    ]
    return np.stack(columns, 1)


def _binned(column: Array) -> Array:
    edges = np.unique(np.quantile(column, np.arange(1, _BINS) / _BINS))
    return np.searchsorted(edges, column, side="right")


def _entropy(labels: Array) -> float:
    share = np.bincount(labels) / len(labels)
    return float(-(share[share > 0] * np.log(share[share > 0])).sum())


def _mig(z: Array, known: Array) -> float:
    bins = np.stack([_binned(column) for column in z.T], 1)
    shared = np.array([[_shared(component, factor) for factor in known.T] for component in bins.T])
    return float(np.mean(_lead(shared) / [max(_entropy(factor), 1e-12) for factor in known.T]))


def _shared(one: Array, other: Array) -> float:
    """Returns the mutual information of two columns of whole numbers, in nats."""
    joint = one * (int(other.max()) + 1) + other
    return max(_entropy(one) + _entropy(other) - _entropy(joint), 0.0)


def _lead(scores: Array) -> Array:
    """Returns by how much the best component of each factor leads the second, `[F]`, of scores `[D, F]`."""
    ranked = np.sort(np.concatenate([np.zeros((1, scores.shape[1])), scores]), axis=0)
    lead: Array = ranked[-1] - ranked[-2]
    return lead


def _halves(count: int, seed: int) -> tuple[Array, Array]:
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // 2], order[count // 2 :]


def _dci(z: Array, v: Array, discrete: tuple[bool, ...], seed: int) -> tuple[float, float, float]:
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    learn, judge = _halves(len(z), seed)
    importance, scores = np.empty((z.shape[1], v.shape[1])), []
    for place, kind in enumerate(discrete):
        trees = (GradientBoostingClassifier if kind else GradientBoostingRegressor)(random_state=seed)
        trees.fit(z[learn], v[learn, place])
        importance[:, place] = trees.feature_importances_
        scores.append(max(float(trees.score(z[judge], v[judge, place])), 0.0))
    return _concentrated(importance), _concentrated(importance.T), float(np.mean(scores))


def _concentrated(importance: Array) -> float:
    """Returns how far each row is concentrated on one column, averaged over the rows by their weight."""
    weight = importance.sum(1)
    share = importance / np.maximum(weight, 1e-12)[:, None]
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(1) / max(math.log(importance.shape[1]), 1e-12)
    return float((weight * (1 - entropy)).sum() / max(weight.sum(), 1e-12))


def _sap(z: Array, v: Array, discrete: tuple[bool, ...], seed: int) -> float:
    learn, judge = _halves(len(z), seed)
    scores = np.empty((z.shape[1], v.shape[1]))
    for place, kind in enumerate(discrete):
        score: Callable[[Array, Array, Array, Array], float] = _told_apart if kind else _correlated
        for component, column in enumerate(z.T):
            scores[component, place] = score(column, v[:, place], learn, judge)
    return float(_lead(scores).mean())


def _correlated(column: Array, factor: Array, learn: Array, judge: Array) -> float:
    if column.std() < 1e-12 or factor.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(column, factor)[0, 1] ** 2)


def _told_apart(column: Array, factor: Array, learn: Array, judge: Array) -> float:
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    leaves = max(len(np.unique(factor)), 2)
    thresholds = DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=0)
    thresholds.fit(column[learn, None], factor[learn])
    told = thresholds.predict(column[judge, None])
    return max(float(balanced_accuracy_score(factor[judge], told, adjusted=True)), 0.0)


def _factor_vae(z: Array, known: Array, seed: int) -> float:
    active = z.std(0) > 1e-12
    if not active.any():
        return 0.0
    z, rng = z[:, active] / z[:, active].std(0), np.random.default_rng(seed)
    learned, judged = (
        np.stack([_votes(z, factor, _VOTES // known.shape[1], rng) for factor in known.T]) for _ in range(2)
    )
    return float(judged[learned.argmax(0), np.arange(z.shape[1])].sum() / judged.sum())


def _votes(z: Array, factor: Array, count: int, rng: np.random.Generator) -> Array:
    """Returns how often each component varied least among examples that share a factor, `[D]`."""
    order = np.argsort(factor, kind="stable")
    size = np.bincount(factor)
    start = np.cumsum(size) - size
    chosen = factor[rng.integers(len(factor), size=count)]
    within = (rng.random((count, _SHARING)) * size[chosen][:, None]).astype(np.int64)
    alike = z[order[start[chosen][:, None] + within]]
    return np.bincount(alike.var(1).argmin(1), minlength=z.shape[1])


def _info_mec(z: Array, v: Array, known: Array, discrete: tuple[bool, ...], seed: int) -> tuple[float, float, float]:
    from sklearn.feature_selection import mutual_info_classif

    spread = np.ptp(z, axis=0)
    active = z[:, spread > max(spread.max() * _ACTIVE_RANGE, 1e-12)]
    if not active.shape[1]:
        return 0.0, 0.0, 0.0
    active = (active - active.mean(0)) / active.std(0)
    shared = np.stack(
        [
            mutual_info_classif(active, f, discrete_features=False, n_neighbors=_NEIGHBOURS, random_state=seed)
            / max(_entropy(f), 1e-12)
            for f in known.T
        ],
        1,
    )
    explained = [_read_off(active, column, kind) for column, kind in zip(v.T, discrete, strict=True)]
    return _dominant(shared), _dominant(shared.T), float(np.mean(explained))


def _dominant(shared: Array) -> float:
    """Returns the mean share of the largest column in each row, moved so that an even share is 0."""
    even = 1 / shared.shape[1]
    if even == 1:
        return 1.0
    total = shared.sum(1)
    largest = np.where(total > 1e-12, shared.max(1) / np.maximum(total, 1e-12), even)
    return float((largest.mean() - even) / (1 - even))


def _read_off(z: Array, factor: Array, kind: bool) -> float:
    """Returns how much of a factor a linear model explains, in [0, 1]."""
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.metrics import log_loss

    if not kind:
        return float(LinearRegression().fit(z, factor).score(z, factor))
    model = LogisticRegression(C=1e3, max_iter=5000, tol=1e-3).fit(z, factor)
    left = float(log_loss(factor, model.predict_proba(z)))
    return max(1 - left / max(_entropy(factor.astype(np.int64)), 1e-12), 0.0)
