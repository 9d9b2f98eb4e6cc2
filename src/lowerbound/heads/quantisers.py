r"""Quantisers: heads that turn features into a sequence of discrete codes.

The encoder is deterministic and z is one of finitely many sequences of T codes, each out of K. Then q(z|x) has all its
mass on one of them, its entropy is 0, and the evidence lower bound is a plain sum (van den Oord, Vinyals and
Kavukcuoglu, 2017, "Neural discrete representation learning", section 3.1):

$$\log p(x) = \log \sum_z p(x|z)\,p(z) \ge \log p(x|z_q(x)) + \log p(z_q(x))$$

It is a true bound on the log-evidence of a model whose z is discrete, with the prior of the codes as the rate. What is
lost is what the *other* sequences of codes would add to the sum.

**z is a tensor `[T, D]`**: T positions, each with the D-vector that stands for its code. The decoder, interpolation and
everything else see vectors; `codes_of` and `vectors_of` go between vectors and numbers. On features that lie on a grid
`[C, h, w]`, with T = h w, the positions are the places of the grid, row by row, and all share one affine map.

**Straight through** (Bengio, Léonard and Courville, 2013). A choice among codes has no gradient, so the decoder's
gradient with respect to z is handed to what was quantised, as if quantising did nothing.

`VectorQuantised` takes the nearest of K learned vectors. `FiniteScalar` rounds each of D bounded numbers to one of a
few levels, so there is no codebook to learn (Mentzer, Minnen, Agustsson and Tschannen, 2023).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lowerbound.discrete import CodeMass
from lowerbound.errors import UsageError
from lowerbound.heads.base import Head
from lowerbound.nn import check_sizes

# How soon the record of which codes are used forgets, where the codebook is not itself a moving average.
_USAGE_DECAY = 0.99
# Levels are reached by a tanh; this much of it is left, so that the outermost are reached at finite inputs.
_LEVEL_MARGIN = 1e-3
# With many more the margin would be wider than the outermost level.
_MOST_LEVELS = 512


class Quantiser(Head, ABC):
    """Features to a sequence of T discrete codes, each a vector of D numbers.

    Args:
        in_shape: The shape of the features: `(C, h, w)` with h w = T for one code a place, or any other shape for T
            codes that each depend on all features.
        event_shape: The shape of z: `(T, D)`.

    Attributes:
        num_codes: K, how many different codes there are at a position.

    Raises:
        UsageError: `event_shape` is not `(T, D)`, or a size is below 1.
    """

    num_codes: int

    def __init__(self, in_shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        if len(event_shape) != 2:
            raise UsageError(
                f"A quantiser gives T codes of D numbers each, so event_shape should be (T, D); got "
                f"{tuple(event_shape)}. For one code for all of x give (1, D)."
            )
        positions, width = event_shape
        on_grid = len(in_shape) == 3 and in_shape[1] * in_shape[2] == positions
        super().__init__(in_shape[:1], (width,)) if on_grid else super().__init__(in_shape, event_shape)
        self.in_shape, self.event_shape = tuple(in_shape), tuple(event_shape)
        self.on_grid = on_grid

    @property
    def positions(self) -> int:
        """T, the length of a sequence of codes."""
        return self.event_shape[0]

    @abstractmethod
    def codes_of(self, z: Tensor) -> Tensor:
        """Returns the numbers in [0, K) of the codes nearest to vectors: `[*, D]` to int64 `[*]`."""

    @abstractmethod
    def vectors_of(self, codes: Tensor) -> Tensor:
        """Returns the vectors of codes: int64 `[*]` to `[*, D]`."""

    @abstractmethod
    def forward(self, features: Tensor, batch: torch.Size) -> CodeMass:
        """Maps features `[prod(batch), *in_shape]` to the codes' distribution, of that batch shape."""

    def codebook_loss(self, q: CodeMass) -> Tensor:
        """Returns what pulls the codes' vectors to what was quantised, `[*batch]`; 0 where nothing does."""
        return q.raw.new_zeros(q.batch_shape)

    def commitment_loss(self, q: CodeMass) -> Tensor:
        """Returns what pulls the encoder to the codes it chose, `[*batch]`; 0 where nothing has to."""
        return q.raw.new_zeros(q.batch_shape)

    def learn(self, q: CodeMass) -> None:
        """Takes in a batch of training, where a quantiser learns by other means than a gradient."""

    def _raw_codes(self, features: Tensor, batch: torch.Size) -> Tensor:
        """Returns what is to be quantised, `[*batch, T, D]`, at least float32."""
        features = features.flatten(2).transpose(1, 2) if self.on_grid else features.flatten(1)
        raw: Tensor = self.project(features)
        if raw.dtype in (torch.bfloat16, torch.float16):
            raw = raw.float()
        return raw.reshape(*batch, *self.event_shape)


class VectorQuantised(Quantiser):
    r"""The nearest of K learned vectors (van den Oord, Vinyals and Kavukcuoglu, 2017, eqs. 1-2).

    $$z_t = e_k, \qquad k = \arg\min_j \|r_t - e_j\|^2$$

    with r the affine map of the features. The decoder's gradient passes straight through to r, so the codebook e needs
    another teacher. It is either of the paper's:

    * a moving average (`decay`, the default; the paper's appendix A.1): e_k is the mean of the r that chose it, over
      about 1 / (1 - decay) updates. With N_k the decayed count of those, and n_k and s_k the count and sum in a batch,

      $$N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \qquad e_k \leftarrow e_k + (1 - \gamma)(s_k - n_k e_k) / N_k$$

      which is the paper's ratio of two moving averages, without the second;
    * a gradient (`decay=None`), that of `codebook_loss`, \(\frac1T \sum_t \|sg[r_t] - e_k\|^2\).

    A code that few r choose stays where it is, and is chosen less and less. So a code whose count has fallen below
    `restart` times the mean count of all is put on an r of the batch, picked at random (as in Dhariwal et al., 2020,
    "Jukebox"). All counts begin at 0, so that the first batch gives the whole codebook its first place.

    `learn` does both, and an objective calls it once an update; a forward pass changes nothing. The counts, and the
    codebook where it is an average, are buffers, saved with the weights. Random picks come from torch's generator.

    Args:
        in_shape: The shape of the features, see `Quantiser`.
        event_shape: The shape of z: `(T, D)`.
        num_codes: K, at least 2.
        decay: γ, in (0, 1); None to learn the codebook by its gradient.
        restart: Below which fraction of the mean count a code begins anew, in [0, 1); 0 for never.

    Raises:
        UsageError: A setting is out of its range.

    Example:
        >>> head = VectorQuantised((16,), (4, 2), num_codes=8)
        >>> q = head(torch.zeros(5, 16), torch.Size([5]))
        >>> q.batch_shape, q.event_shape, q.codes.shape
        (torch.Size([5]), torch.Size([4, 2]), torch.Size([5, 4]))
    """

    codebook: Tensor
    usage: Tensor

    def __init__(
        self,
        in_shape: tuple[int, ...],
        event_shape: tuple[int, ...],
        num_codes: int = 256,
        decay: float | None = 0.99,
        restart: float = 0.1,
    ) -> None:
        super().__init__(in_shape, event_shape)
        check_sizes(num_codes=(num_codes,))
        if num_codes < 2 or not 0 < (0.5 if decay is None else decay) < 1 or not 0 <= restart < 1:
            raise UsageError(
                "Vector quantisation needs at least 2 codes, a decay between 0 and 1 (or None for a codebook that is "
                f"learned by its gradient), and restart from 0 to below 1; got num_codes={num_codes}, decay={decay}, "
                f"restart={restart}."
            )
        self.num_codes, self.decay, self.restart = num_codes, decay, restart
        codebook = torch.randn(num_codes, event_shape[1]) / math.sqrt(event_shape[1])
        if decay is None:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("usage", torch.zeros(num_codes))

    @torch.no_grad()
    def codes_of(self, z: Tensor) -> Tensor:
        # In full precision: a code chosen in bf16 is another one than the one that evaluation will find.
        with torch.autocast(z.device.type, enabled=False):
            halves = 0.5 * self.codebook.square().sum(1)
            flat = z.reshape(-1, z.shape[-1])
            return torch.addmm(halves, flat, self.codebook.T, alpha=-1).argmin(1).reshape(z.shape[:-1])

    def vectors_of(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook)

    def forward(self, features: Tensor, batch: torch.Size) -> CodeMass:
        raw = self._raw_codes(features, batch)
        codes = self.codes_of(raw)
        return CodeMass(straight_through(self.vectors_of(codes), raw), codes, raw)

    def codebook_loss(self, q: CodeMass) -> Tensor:
        if self.decay is not None:
            return super().codebook_loss(q)
        return _distance(self.vectors_of(q.codes), q.raw.detach())

    def commitment_loss(self, q: CodeMass) -> Tensor:
        return _distance(q.raw, self.vectors_of(q.codes).detach())

    @torch.no_grad()
    def learn(self, q: CodeMass) -> None:
        with torch.autocast(q.raw.device.type, enabled=False):
            raw, codes = q.raw.detach().reshape(-1, q.raw.shape[-1]).to(self.codebook.dtype), q.codes.reshape(-1)
            count = torch.zeros_like(self.usage).index_add_(0, codes, self.usage.new_ones(len(codes)))
            decay = _USAGE_DECAY if self.decay is None else self.decay
            self.usage.lerp_(count, 1 - decay)
            if self.decay is not None:
                total = torch.zeros_like(self.codebook).index_add_(0, codes, raw)
                pull = (1 - decay) / self.usage.clamp_min(torch.finfo(raw.dtype).tiny)
                self.codebook.add_(pull[:, None] * (total - count[:, None] * self.codebook))
            self._restart(raw)

    def _restart(self, raw: Tensor) -> None:
        fair = len(raw) / self.num_codes
        dead = self.usage < self.restart * fair
        # Picked for all codes, so that nothing waits to hear how many are dead.
        picked = raw[torch.randint(len(raw), (self.num_codes,), device=raw.device)]
        self.codebook.copy_(torch.where(dead[:, None], picked, self.codebook))
        self.usage.masked_fill_(dead, fair)


class FiniteScalar(Quantiser):
    r"""Each of D numbers rounded to one of L_d levels: K is the product of the L_d (Mentzer et al., 2023).

    $$z_d = \mathrm{round}(f_d(r_d)) / \lfloor L_d / 2 \rfloor, \qquad
      f_d(r) = \tfrac{L_d - 1}{2} (1 - \epsilon) \tanh(r + s_d) - o_d$$

    with \(o_d = 1/2\) for an even number of levels, else 0, and the shift \(s_d\) such that f_d(0) = 0. The rounding's
    gradient is passed straight through; f's is its own. Every code is a fixed point of a grid in [-1, 1], so nothing
    can collapse and there is neither a codebook nor a commitment loss.

    A departure: the published program has \(s_d = \tan(o_d / ...)\), near the inverse of tanh for many levels. Here it
    is that inverse, so that f_d(0) = 0 holds for all; it needs L_d of at least 3 (the paper recommends 5 or more).

    Args:
        in_shape: The shape of the features, see `Quantiser`.
        event_shape: The shape of z: `(T, D)`.
        levels: L_d for each of the D numbers, at least 3. The paper's table has (8, 5, 5, 5) for about 2^10 codes and
            (8, 6, 5) for about 2^8.

    Raises:
        UsageError: There are not D levels, or one is below 3.

    Example:
        >>> head = FiniteScalar((16,), (4, 3), levels=(8, 6, 5))
        >>> head.num_codes, head.vectors_of(torch.tensor([0, 239])).tolist()
        (240, [[-1.0, -1.0, -1.0], [0.75, 0.6666666865348816, 1.0]])
    """

    counts: Tensor
    basis: Tensor

    def __init__(
        self, in_shape: tuple[int, ...], event_shape: tuple[int, ...], levels: tuple[int, ...] = (8, 5, 5, 5)
    ) -> None:
        super().__init__(in_shape, event_shape)
        check_sizes(levels=levels)
        if not 3 <= min(levels) <= max(levels) <= _MOST_LEVELS:
            raise UsageError(
                f"Finite scalar quantisation has from 3 to {_MOST_LEVELS} levels a component; got {tuple(levels)}."
            )
        if len(levels) != event_shape[1]:
            raise UsageError(
                f"Finite scalar quantisation of z of shape {tuple(event_shape)} needs {event_shape[1]} numbers of "
                f"levels; got {len(levels)}, {tuple(levels)}. Give event_shape=(T, len(levels))."
            )
        self.levels = tuple(levels)
        self.num_codes = math.prod(levels)
        # Saved although they follow from the levels: what is not saved does not survive being built without memory.
        self.register_buffer("counts", torch.tensor(levels))
        self.register_buffer("basis", torch.tensor([math.prod(levels[:d]) for d in range(len(levels))]))

    def bounded(self, raw: Tensor) -> Tensor:
        """Returns f(r), whose nearest whole number is the level: `[*, D]`, in [-floor(L / 2), (L - 1) / 2]."""
        reach = (self.counts - 1) * ((1 - _LEVEL_MARGIN) / 2)
        offset = 0.5 * (self.counts % 2 == 0).to(raw.dtype)
        return torch.tanh(raw + torch.atanh(offset / reach)) * reach - offset

    def codes_of(self, z: Tensor) -> Tensor:
        digits = (z.detach() * self._half_width).round().long() + self._half_width
        return (digits * self.basis).sum(-1)

    def vectors_of(self, codes: Tensor) -> Tensor:
        digits = codes[..., None] // self.basis % self.counts - self._half_width
        return digits.to(next(self.project.parameters()).dtype) / self._half_width

    @property
    def _half_width(self) -> Tensor:
        return self.counts // 2

    def forward(self, features: Tensor, batch: torch.Size) -> CodeMass:
        raw = self._raw_codes(features, batch)
        bounded = self.bounded(raw)
        z = straight_through(bounded.round(), bounded) / self._half_width
        return CodeMass(z, self.codes_of(z), raw)


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """Returns `value`, with the gradient going to `source` unchanged and none to `value`.

    Example:
        >>> source = torch.tensor(0.3, requires_grad=True)
        >>> through = straight_through(source.round(), source)
        >>> through.backward()
        >>> through.item(), source.grad.item()
        (0.0, 1.0)
    """
    # In this order what is added is exactly 0. The usual source + (value - source) is the value but for a rounding
    # error, and then no code is equal to itself any more.
    return value.detach() + (source - source.detach())


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Returns the squared distance of vectors, averaged over the positions: `[*batch, T, D]` to `[*batch]`."""
    return (a - b).square().sum(-1).mean(-1)
