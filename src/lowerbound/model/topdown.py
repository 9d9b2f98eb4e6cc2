r"""Latent variables in layers: what is drawn from the top down, under p and under q.

A ladder has L layers of latent variables. With \(z_{>l} = (z_{l+1}, \dots, z_L)\),

$$p(z) = p(z_L) \prod_{l<L} p(z_l|z_{>l}), \qquad q(z|x) = q(z_L|x) \prod_{l<L} q(z_l|z_{>l}, x).$$

Both go down the same way, so q knows what p expects of \(z_l\) before it looks at x: the inference is bidirectional
(Sønderby, Raiko, Maaløe, Sønderby and Winther, 2016, "Ladder variational autoencoders"; Kingma et al., 2016). It says
only in what it differs, as the "residual normal" of Vahdat and Kautz (2020, "NVAE"):

$$p(z_l|z_{>l}) = N(\mu_l, \sigma_l), \qquad
  q(z_l|z_{>l}, x) = N(\mu_l + \sigma_l\,\Delta\mu_l,\; \sigma_l\,e^{\Delta s_l}).$$

\(\mu_l\) and \(\sigma_l\) are functions of \(z_{>l}\); \(\Delta\mu_l\) and \(\Delta s_l\) of the same and of features
\(d_l(x)\) of x. The KL does not change under an affine map of \(z_l\), so it is that of
\(N(\Delta\mu_l, e^{\Delta s_l})\) to \(N(0, I)\): it holds no difference of large numbers and no division by a small
\(\sigma_l\), whatever p has become. A departure from NVAE, which adds \(\Delta\mu_l\) without the factor \(\sigma_l\).

**The order in z** is that of the layers from the bottom, \(z = (z_1, \dots, z_L)\), so that \(z_{>l}\) is what follows
\(z_l\).

**Mean and standard deviation.** Those of z have no closed form. `mean` is what the descent gives when every layer takes
its conditional mean; it is the mean where those are affine in the layers above, and a coherent z everywhere.
`stddev` are the conditional standard deviations along that very descent, and so leave out what a component inherits
from the spread of the layers above. `moments` estimates the mean and standard deviation of z themselves, from draws.

**What a component says of x** is not seen from its mean, which follows the layers above even where q is p and says
nothing of x itself. It is seen from \(\Delta\mu_l\), which `relative_mean` has along the descent of `mean`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from lowerbound.data import generator
from lowerbound.distributions import DiagonalNormal, analytic_kl_each
from lowerbound.errors import UsageError
from lowerbound.heads import Conditional, Head
from lowerbound.heads import DiagonalNormal as DiagonalNormalHead
from lowerbound.nn import check_sizes
from lowerbound.priors import Prior, StandardNormal

# Pairs of opposite noise behind `TopDown.moments`, and draws that go down together.
_PAIRS = 64
_AT_ONCE = 16


@dataclass(frozen=True)
class Rung:
    """One layer of a descent.

    Attributes:
        z: z_l, `[*sample, *batch, D_l]`.
        p: p(z_l|z_>l).
        relative: What z_l is a draw of, in units of p: q(z_l|z_>l, x), or N(0, I) in a descent of p itself.
        normal: The same in units of z.
    """

    z: Tensor
    p: DiagonalNormal
    relative: DiagonalNormal
    normal: DiagonalNormal

    @property
    def kl_each(self) -> Tensor:
        """KL(q(z_l|z_>l, x) || p(z_l|z_>l)) of each component, nats; of the top layer without the sample's axes."""
        each = analytic_kl_each(self.relative, _standard(self.relative))
        assert each is not None
        return each


class TopDown(Distribution, ABC):
    """A distribution over the layers of a ladder, drawn from the top down (module docstring).

    Args:
        prior: Whose layers these are.
        batch_shape: The batch shape.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, prior: LadderPrior, batch_shape: torch.Size) -> None:
        self.prior = prior
        super().__init__(batch_shape, torch.Size(prior.event_shape), validate_args=False)

    @abstractmethod
    def layer(self, index: int, above: Tensor) -> tuple[DiagonalNormal, DiagonalNormal]:
        """Returns p(z_l|z_>l) and this distribution's own conditional in its units, given z_>l."""

    @property
    def support(self) -> constraints.Constraint:
        """All of R^D."""
        return constraints.independent(constraints.real, 1)

    @property
    def mean(self) -> Tensor:
        """Every layer at its conditional mean, `[*batch, D]` (module docstring)."""
        return joined(self._descend_mean())

    @property
    def stddev(self) -> Tensor:
        """The conditional standard deviations along the descent of `mean`, `[*batch, D]` (module docstring)."""
        return torch.cat([rung.normal.stddev for rung in self._descend_mean()], -1)

    @property
    def variance(self) -> Tensor:
        """The square of `stddev`, `[*batch, D]`."""
        return self.stddev.square()

    @property
    def relative_mean(self) -> Tensor:
        """How far each conditional lies from p's, in units of p's scale, along the descent of `mean`, `[*batch, D]`."""
        return torch.cat([rung.relative.loc for rung in self._descend_mean()], -1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Estimates the mean and standard deviation of z, `[*batch, D]` each, from 64 fixed pairs of opposite noise.

        The noise is the same at each call and for each member of the batch, so it is deterministic and leaves torch's
        generator alone. Its mean is 0 and its variances are 1; up to 64 components it is uncorrelated as well, so that
        both are exact where z is an affine function of the noise.
        """
        loc = self.prior.top.loc
        fixed = _fixed_noise(self.event_shape[0]).to(loc).reshape(-1, *[1] * len(self.batch_shape), *self.event_shape)
        at_once = fixed.expand(-1, *self.batch_shape, -1).split(_AT_ONCE)
        z = torch.cat([self.from_noise(eps) for eps in at_once])
        return z.mean(0), z.std(0, correction=0)

    def noise(self, sample_shape: Any = ()) -> Tensor:
        """Draws the standard normal noise of a descent, `[*sample, *batch, D]`."""
        loc = self.prior.top.loc
        return torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=loc.dtype, device=loc.device)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws from the top down, differentiably, `[*sample, *batch, D]`."""
        return self.from_noise(self.noise(sample_shape))

    def from_noise(self, eps: Tensor) -> Tensor:
        """Returns the draw that standard normal noise `[*sample, *batch, D]` stands for."""
        return joined(self.descend(eps))

    def to_noise(self, value: Tensor) -> Tensor:
        """Returns the standard normal noise that a z, `[*sample, *batch, D]`, is the draw of."""
        rungs = self.rungs_at(value)
        return torch.cat([(rung.z - rung.normal.loc) * torch.exp(-rung.normal.log_scale) for rung in rungs], -1)

    def descend(self, eps: Tensor) -> tuple[Rung, ...]:
        """Returns the layers, the lowest first, of the draw that noise `[*sample, *batch, D]` stands for."""
        return self._walk(eps, lambda part, normal: normal.from_noise(eps[..., part]))

    def rungs_at(self, z: Tensor) -> tuple[Rung, ...]:
        """Returns the layers, the lowest first, at a given z, `[*sample, *batch, D]`."""
        return self._walk(z, lambda part, _: z[..., part])

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, nats, `[*sample, *batch]`."""
        return log_q_of(self.rungs_at(value))

    def _walk(self, like: Tensor, place: Callable[[slice, DiagonalNormal], Tensor]) -> tuple[Rung, ...]:
        above = like[..., :0]  # above the top there is nothing
        rungs: list[Rung] = []
        for index in reversed(range(len(self.prior.latent_dims))):
            p, relative = self.layer(index, above)
            normal = DiagonalNormal(p.loc + p.log_scale.exp() * relative.loc, p.log_scale + relative.log_scale)
            z = place(self.prior.slices[index], normal)
            rungs.append(Rung(z, p, relative, normal))
            above = torch.cat([z, above], -1)
        return tuple(reversed(rungs))

    def _descend_mean(self) -> tuple[Rung, ...]:
        loc = self.prior.top.loc
        return self.descend(loc.new_zeros(self.batch_shape + self.event_shape))


class TopDownPrior(TopDown):
    """p(z) of a ladder: batch shape `[]`."""

    def __init__(self, prior: LadderPrior) -> None:
        super().__init__(prior, torch.Size())

    def layer(self, index: int, above: Tensor) -> tuple[DiagonalNormal, DiagonalNormal]:
        _, p = self.prior.layer(index, above)
        return p, _standard(p)


class TopDownPosterior(TopDown):
    r"""q(z|x) of a ladder.

    It can be shifted and widened, in units of each layer's own conditional standard deviation:
    \(\Delta\mu + e^{\Delta s} t\) and \(\Delta s + g\) instead of \(\Delta\mu\) and \(\Delta s\). That makes defensive
    proposals (`widened`), and it is the family in which the best q of one example is looked for (`free`): the same
    descent, with each layer's conditional shifted and stretched as the example needs it.

    Args:
        features: d(x), those of all layers together, `[*batch, F_1 + ... + F_L]`.
        head: The conditionals.
        shift: t, `[*batch, D]`; None for none.
        growth: g, `[*batch, D]`; None for none.
    """

    def __init__(
        self, features: Tensor, head: LadderHead, shift: Tensor | None = None, growth: Tensor | None = None
    ) -> None:
        super().__init__(head.prior, features.shape[:-1])
        self.features, self.head, self.shift, self.growth = features, head, shift, growth

    def layer(self, index: int, above: Tensor) -> tuple[DiagonalNormal, DiagonalNormal]:
        state, p = self.prior.layer(index, above)
        return p, self._moved(self.head.relative(index, state, self.features), self.prior.slices[index])

    def _moved(self, relative: DiagonalNormal, part: slice) -> DiagonalNormal:
        loc, log_scale = relative.loc, relative.log_scale
        if self.shift is not None:
            loc = loc + log_scale.exp() * self.shift[..., part]
        if self.growth is not None:
            log_scale = log_scale + self.growth[..., part]
        return DiagonalNormal(loc, log_scale)

    def widened(self, factor: float) -> TopDownPosterior:
        """Returns the same descent with every conditional's standard deviation multiplied by `factor`, above 0."""
        growth = self._zeros() if self.growth is None else self.growth
        return TopDownPosterior(self.features, self.head, self.shift, growth + math.log(factor))

    def free(self) -> tuple[Sequence[Tensor], Callable[[Sequence[Tensor]], Distribution]]:
        """Returns the shift and the growth, `[*batch, D]` each, and what makes a q of them again."""

        def rebuild(parameters: Sequence[Tensor]) -> Distribution:
            return TopDownPosterior(self.features, self.head, *parameters)

        return [self._zeros() if moved is None else moved for moved in (self.shift, self.growth)], rebuild

    def _zeros(self) -> Tensor:
        return self.prior.top.loc.new_zeros(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TopDownPosterior:
        """Returns the same distribution with a larger batch shape."""
        return self._each(lambda values: values.expand(*batch_shape, -1))

    def __getitem__(self, index: Tensor) -> TopDownPosterior:
        """Returns the members of the batch at `index`."""
        return self._each(lambda values: values[index])

    def _each(self, apply: Callable[[Tensor], Tensor]) -> TopDownPosterior:
        moved = (None if values is None else apply(values) for values in (self.shift, self.growth))
        return TopDownPosterior(apply(self.features), self.head, *moved)


class LadderPrior(Prior):
    """p(z) in layers: a standard normal at the top, and below it normals that hang on all layers above.

    It is a prior like any other, and goes with an encoder that knows nothing of it; the KL is then taken from the
    draws. A `LadderHead` goes down with it.

    Args:
        top: p(z_L).
        conditionals: p(z_l|z_>l) for l = 1, ..., L - 1: each takes z_>l, of shape `(D_{l+1} + ... + D_L,)`, and ends in
            a DiagonalNormal head over `(D_l,)`. The features that its network gives are the layer's *state*, which q is
            shown.

    Attributes:
        latent_dims: D_1, ..., D_L.
        state_dims: The sizes of the states; that of the top is 0.
        slices: Where each layer lies in z.

    Raises:
        UsageError: A conditional does not take what is above it, or does not end in a DiagonalNormal head.

    Example:
        >>> from lowerbound import heads
        >>> from lowerbound.nn import MLP
        >>> below = Conditional(MLP((2,), (16,)), heads.DiagonalNormal((16,), (3,)))
        >>> prior = LadderPrior(StandardNormal(2), (below,))
        >>> prior.latent_dims, prior().sample((5,)).shape
        ((3, 2), torch.Size([5, 5]))
    """

    def __init__(self, top: StandardNormal, conditionals: tuple[Conditional, ...] = ()) -> None:
        super().__init__()
        self.top = top
        self.conditionals = nn.ModuleList(conditionals)
        self.latent_dims = (*_sizes("conditional", conditionals), top.latent_dim)
        self.state_dims = (*(math.prod(conditional.network.out_shape) for conditional in conditionals), 0)
        self.slices = _slices(self.latent_dims)
        self.event_shape = (sum(self.latent_dims),)
        for layer, conditional in enumerate(conditionals):
            above = sum(self.latent_dims[layer + 1 :])
            if conditional.network.in_shape != (above,):
                raise UsageError(
                    f"Above layer {layer + 1} of latent sizes {self.latent_dims} there are {above} components of z, "
                    f"but its conditional takes inputs of shape {conditional.network.in_shape}. Build its network "
                    f"with in_shape=({above},)."
                )

    def bind(self, encoder: Conditional) -> None:
        if isinstance(encoder.head, LadderHead):
            encoder.head.bind(self)

    def layer(self, index: int, above: Tensor) -> tuple[Tensor, DiagonalNormal]:
        """Returns the state of a layer, `[..., H_l]`, and p(z_l|z_>l), given z_>l, `[..., D_{l+1} + ... + D_L]`."""
        if index == len(self.conditionals):
            return above, self.top()
        conditional = self.conditionals[index]
        assert isinstance(conditional, Conditional)
        flat = conditional.network(above.reshape(-1, above.shape[-1])).flatten(1)
        batch = above.shape[:-1]
        return flat.reshape(*batch, -1), conditional.head(flat, batch)

    def forward(self) -> TopDownPrior:
        return TopDownPrior(self)

    def between(self, start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
        """Returns points on the line that is straight in the noise of the descent: each layer as p expects it there.

        Half-way between two z, a lower layer need not lie where p looks for it given the layers above; half-way between
        their noises it does, as likely as p finds the noise. The ends are the same.
        """
        p: TopDownPrior = self()
        return p.from_noise(torch.lerp(p.to_noise(start), p.to_noise(end), weight))


class LadderHead(Head):
    """A posterior in layers: features of x to q(z|x), which goes down with a `LadderPrior`.

    Its model's prior is bound to it by `VAE`; it is no submodule of the head, and is counted and saved once.

    Args:
        feature_dims: F_1, ..., F_L: how the features of x are divided among the layers, as a `BottomUp` network gives
            them.
        posteriors: What makes q(z_l|z_>l, x), in units of p(z_l|z_>l), of the layer's state and its features, for
            l = 1, ..., L: each takes `(H_l + F_l,)`, the top `(F_L,)`, and ends in a DiagonalNormal head over `(D_l,)`.

    Raises:
        UsageError: There are not as many posteriors as parts of the features, or one does not end in a DiagonalNormal
            head; when it is bound, they do not fit the prior; when it is called, none is bound.

    Example:
        >>> from lowerbound import heads
        >>> from lowerbound.nn import MLP
        >>> head = LadderHead((8,), (Conditional(MLP((8,), (16,)), heads.DiagonalNormal((16,), (2,))),))
        >>> head.bind(LadderPrior(StandardNormal(2)))
        >>> head(torch.zeros(5, 8), torch.Size([5])).rsample((3,)).shape
        torch.Size([3, 5, 2])
    """

    def __init__(self, feature_dims: tuple[int, ...], posteriors: tuple[Conditional, ...]) -> None:
        # Not the head's own constructor: the affine maps are those of the layers, there is none over all of them.
        nn.Module.__init__(self)
        check_sizes(feature_dims=feature_dims)
        if len(feature_dims) != len(posteriors):
            raise UsageError(
                f"A ladder has one posterior and one part of the features a layer; got {len(posteriors)} posteriors "
                f"and features of sizes {tuple(feature_dims)}."
            )
        self.feature_dims = tuple(feature_dims)
        self.posteriors = nn.ModuleList(posteriors)
        self.latent_dims = _sizes("posterior", posteriors)
        self.in_shape, self.event_shape = (sum(feature_dims),), (sum(self.latent_dims),)
        self._parts = _slices(self.feature_dims)
        # In a tuple, so that it is not registered as a submodule; a deep copy of the model follows it all the same, to
        # the copy's own prior.
        self._prior: tuple[LadderPrior, ...] = ()

    @property
    def prior(self) -> LadderPrior:
        """The prior that it goes down with."""
        if not self._prior:
            raise UsageError(
                "A LadderHead gives q(z|x) relative to a LadderPrior and has none yet: put both into a LadderVAE, or "
                "call bind(prior)."
            )
        return self._prior[0]

    def bind(self, prior: LadderPrior) -> None:
        """Is told which prior it goes down with."""
        if self.latent_dims != prior.latent_dims:
            raise UsageError(
                f"Posterior and prior must have the same layers, but the posterior's have {self.latent_dims} "
                f"components of z and the prior's {prior.latent_dims}."
            )
        shown = zip(self.posteriors, prior.state_dims, self.feature_dims, strict=True)
        for layer, (posterior, state, own) in enumerate(shown):
            assert isinstance(posterior, Conditional)
            if posterior.network.in_shape != (state + own,):
                raise UsageError(
                    f"The posterior of layer {layer + 1} is shown the {state} features of the prior's state and {own} "
                    f"of x, but takes inputs of shape {posterior.network.in_shape}. Build its network with in_shape="
                    f"({state + own},)."
                )
        self._prior = (prior,)

    def relative(self, index: int, state: Tensor, features: Tensor) -> DiagonalNormal:
        """Returns q(z_l|z_>l, x) in units of p(z_l|z_>l), given the layer's state and all features of x."""
        shown = features[..., self._parts[index]]
        if state.shape[-1]:
            batch = torch.broadcast_shapes(state.shape[:-1], shown.shape[:-1])
            shown = torch.cat([state.expand(*batch, -1), shown.expand(*batch, -1)], -1)
        # The top hangs on x alone: it is worked out once for all draws.
        relative: DiagonalNormal = self.posteriors[index](shown)
        return relative

    @property
    def density_cost(self) -> None:
        """None: it takes a descent."""
        return

    def moments(self, q: Distribution) -> tuple[Tensor, Tensor]:
        assert isinstance(q, TopDown)
        return q.moments()

    def moved(self, q: Distribution) -> Tensor:
        assert isinstance(q, TopDown)
        return q.relative_mean

    def notes(self) -> list[str]:
        return [
            (
                "active_units of a ladder counts the components whose conditional mean under q, less that under p and "
                "in units of p's standard deviation, varies over the examples, at the descent through the conditional "
                "means: a component that follows the layers above as p does says nothing of x; and mutual_information "
                "and marginal_kl, which need a descent for each pair of examples, are left out"
            )
        ]

    def forward(self, features: Tensor, batch: torch.Size) -> TopDownPosterior:
        return TopDownPosterior(features.reshape(*batch, -1), self)


def joined(rungs: Sequence[Rung]) -> Tensor:
    """Returns z, `[*sample, *batch, D]`."""
    return torch.cat([rung.z for rung in rungs], -1)


def log_q_of(rungs: Sequence[Rung]) -> Tensor:
    """Returns the log-density of z in the distribution whose descent this is, nats, `[*sample, *batch]`."""
    return torch.stack([rung.normal.log_prob(rung.z) for rung in rungs]).sum(0)


def log_p_of(rungs: Sequence[Rung]) -> Tensor:
    """Returns log p(z), whosever descent this is, nats, `[*sample, *batch]`."""
    return torch.stack([rung.p.log_prob(rung.z) for rung in rungs]).sum(0)


def _fixed_noise(size: int) -> Tensor:
    """Returns pairs of opposite standard normal noise, `[2 * _PAIRS, size]`, of mean 0 and variance 1."""
    half = torch.randn(_PAIRS, size, generator=generator(_PAIRS), dtype=torch.float64, device="cpu")
    if size <= _PAIRS:
        half = torch.linalg.qr(half).Q
    half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])


def _standard(like: DiagonalNormal) -> DiagonalNormal:
    return DiagonalNormal(torch.zeros_like(like.loc), torch.zeros_like(like.loc))


def _slices(sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True))


def _sizes(what: str, conditionals: Sequence[Conditional]) -> tuple[int, ...]:
    """Returns the number of components of each layer's z, and refuses other heads than normal ones over vectors."""
    for conditional in conditionals:
        head = conditional.head
        if not isinstance(head, DiagonalNormalHead) or len(head.event_shape) != 1:
            raise UsageError(
                f"Each {what} of a ladder ends in a DiagonalNormal head over a vector (D,); got a "
                f"{type(head).__name__} over {head.event_shape}."
            )
    return tuple(conditional.head.event_shape[0] for conditional in conditionals)
