r"""A prior over sequences of discrete codes.

$$p(z) = \prod_{t=1}^T p(c_t \mid c_1, \ldots, c_{t-1})$$

with c the codes of z, in the order of their positions. Each factor is a softmax over the K codes, so the whole is
normalised exactly, and log p(z) is what the codes cost: the rate.

The factors come from one causal transformer (Vaswani et al., 2017): position t sees the codes before it and no others,
so a single pass over a known sequence gives all of them. Drawing takes T passes, for all draws at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, register_kl

from lowerbound.discrete import CodeMass
from lowerbound.errors import UsageError
from lowerbound.heads import Conditional, Quantiser
from lowerbound.nn import CausalTransformer, Linear, check_sizes
from lowerbound.priors.base import Prior


class CodeSequence(Distribution):
    """A distribution over sequences of codes: what `AutoregressiveCodes` returns.

    A value is z, `[T, D]`; one that is no code is taken to the nearest.

    Args:
        prior: Gives the logits of each position.
        quantiser: Goes between codes and their vectors.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, prior: AutoregressiveCodes, quantiser: Quantiser) -> None:
        self.prior = prior
        self.quantiser = quantiser
        super().__init__(torch.Size(), torch.Size(prior.event_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of the codes of z, nats: `[*sample, T, D]` to `[*sample]`."""
        return self.log_prob_of_codes(self.quantiser.codes_of(value))

    def log_prob_of_codes(self, codes: Tensor) -> Tensor:
        """Returns the log-probability of codes, nats: int64 `[*sample, T]` to `[*sample]`."""
        flat = codes.reshape(-1, codes.shape[-1])
        logits = self.prior.logits(flat[:, :-1])
        each = F.cross_entropy(logits.flatten(0, 1), flat.flatten(), reduction="none")
        return -each.reshape(codes.shape).sum(-1)

    def sample_codes(self, sample_shape: Any = ()) -> Tensor:
        """Draws codes, int64 `[*sample, T]`."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            device = next(self.prior.parameters()).device
            codes = torch.zeros(shape.numel(), 0, dtype=torch.long, device=device)
            for _ in range(self.prior.positions):
                last = self.prior.logits(codes, last=True)[:, -1]
                codes = torch.cat([codes, torch.multinomial(last.softmax(-1), 1)], 1)
            return codes.reshape(*shape, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws z, `[*sample, T, D]`; there is no gradient."""
        with torch.no_grad():
            return self.quantiser.vectors_of(self.sample_codes(sample_shape))


@register_kl(CodeMass, CodeSequence)
def _kl_codes(q: CodeMass, p: CodeSequence) -> Tensor:
    # All of q is at one sequence, so the divergence is -log p of it, and which codes those are is known already.
    return -p.log_prob_of_codes(q.codes)


class AutoregressiveCodes(Prior):
    """A distribution over T codes, each given those before it, by a causal transformer (module docstring).

    The encoder is the model's own and `VAE` binds it, because only its quantiser knows which code a vector stands for.
    It is no submodule of the prior. Codes are whole numbers, so what the prior learns cannot pull at the encoder: it
    learns the codes as they are, which is the paper's second stage, carried out beside the first.

    Args:
        event_shape: The shape of z: `(T, D)`.
        num_codes: K, as the quantiser has them.
        width: Width of the transformer, a multiple of `num_heads`.
        depth: Its layers.
        num_heads: Attention heads a layer.

    Raises:
        UsageError: A size is below 1 or the width is no multiple; on a call, no encoder is bound.

    Example:
        >>> from lowerbound import heads, nn
        >>> prior = AutoregressiveCodes((4, 2), num_codes=8, width=16)
        >>> prior.bind(heads.Conditional(nn.MLP((3,), (8,)), heads.VectorQuantised((8,), (4, 2), num_codes=8)))
        >>> z = prior().sample((5,))
        >>> z.shape, prior().log_prob(z).shape
        (torch.Size([5, 4, 2]), torch.Size([5]))
    """

    def __init__(
        self, event_shape: tuple[int, ...], num_codes: int, width: int = 64, depth: int = 2, num_heads: int = 4
    ) -> None:
        super().__init__()
        check_sizes(event_shape=event_shape, num_codes=(num_codes,))
        if len(event_shape) != 2:
            raise UsageError(
                f"A prior over codes needs event_shape = (T, D), T codes with a D-vector each; got {event_shape}."
            )
        self.event_shape = tuple(event_shape)
        self.num_codes, self.width, self.depth, self.num_heads = num_codes, width, depth, num_heads
        self.network = CausalTransformer((self.positions, width), depth, num_heads)
        self.embedding = nn.Embedding(num_codes, width)
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(self.positions, width))
        self.project = Linear(width, num_codes)
        # How often each position has each code, whatever is around it: learned at once, and most of what there is.
        self.bias = nn.Parameter(torch.zeros(self.positions, num_codes))
        nn.init.normal_(self.project.weight, std=0.1 / math.sqrt(width))
        nn.init.zeros_(self.project.bias)
        # In a tuple, so that it is not registered as a submodule; a deep copy of the model follows it all the same.
        self._encoder: tuple[Conditional, ...] = ()

    @property
    def positions(self) -> int:
        """T, the length of a sequence."""
        return self.event_shape[0]

    def bind(self, encoder: Conditional) -> None:
        head = encoder.head
        if not isinstance(head, Quantiser):
            raise UsageError(
                f"AutoregressiveCodes is a prior over discrete codes, and this encoder's {type(head).__name__} gives "
                "none: use a VectorQuantised or FiniteScalar head, or another prior, such as StandardNormal."
            )
        if head.num_codes != self.num_codes:
            raise UsageError(
                f"The prior is over {self.num_codes} codes, but the encoder's {type(head).__name__} has "
                f"{head.num_codes}. Build the prior with num_codes={head.num_codes}."
            )
        self._encoder = (encoder,)

    def logits(self, before: Tensor, last: bool = False) -> Tensor:
        """Returns the logits of the codes that follow: codes `[N, t]` to `[N, t + 1, K]`, at least float32.

        Args:
            before: The codes of the first t positions, t < T.
            last: Only those of the last position, `[N, 1, K]`.
        """
        start = self.start.expand(len(before), -1, -1)
        h = torch.cat([start, self.embedding(before)], 1) + self.place[: before.shape[1] + 1]
        h, bias = self.network(h), self.bias[: before.shape[1] + 1]
        if last:
            h, bias = h[:, -1:], bias[-1:]
        logits: Tensor = self.project(h)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        return logits + bias

    def forward(self) -> CodeSequence:
        if not self._encoder:
            raise UsageError(
                "A prior over codes learns from its encoder's quantiser which vector stands for which code, and has no "
                "encoder yet: put it into a VAE, or call its bind(encoder)."
            )
        quantiser = self._encoder[0].head
        assert isinstance(quantiser, Quantiser)
        return CodeSequence(self, quantiser)
