r"""A likelihood of text: each token given those before it, and z.

$$p(x|z) = \prod_{t=1}^{n} p(x_t \mid x_1, \ldots, x_{t-1}, z)$$

with \(x_n\) the end of the line, or the last place of a row that has none. Each factor is a softmax over all tokens, so
the whole is a probability: over all rows of T places, with nothing but 0 behind the first 0, it adds up to 1.

The states of one GRU (Cho et al., 2014) give all factors. z is where it begins and is added to each of its inputs; as
what it has read of x predicts the next token well without z, it may learn to do without (*posterior collapse*: Bowman
et al., 2016, "Generating sentences from a continuous space"). Their remedy is **word dropout**: in training each token
that it reads is hidden with some probability. It is a noise on the network, not on x: the token is predicted all the
same. In evaluation mode nothing is hidden, and `log_prob` is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from lowerbound.data import Support
from lowerbound.errors import UsageError
from lowerbound.heads.likelihoods import Likelihood
from lowerbound.nn import GRU, Linear, check_sizes, longest, token_counts

# Numbers of a layer at a time where none are kept for a gradient: 64 MiB, whatever the draws, lines and words are.
_AT_A_TIME = 1 << 24


class TokenSequence(Distribution):
    """A distribution over sequences of tokens: what `RecurrentText` returns.

    Args:
        head: Has the weights.
        context: What it made of the features, `[*batch, C]`.

    Attributes:
        event_shape: `(T,)`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, head: RecurrentText, context: Tensor) -> None:
        self.head = head
        self.context = context
        super().__init__(context.shape[:-1], torch.Size(head.event_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """What stands for all x where a mean would: the likeliest token at each place in turn, `[*batch, T]`.

        It need not be the likeliest line, which takes a search.
        """
        return self._generated(torch.Size(), _likeliest)

    @property
    def mode(self) -> Tensor:
        """The same as `mean`."""
        return self.mean

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws rows of tokens, float `[*sample, *batch, T]`, place by place; there is no gradient."""
        return self._generated(torch.Size(sample_shape), _drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of rows of tokens, nats: `[*sample, *batch, T]` to `[*sample, *batch]`."""
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        tokens = value.long().expand(*shape, -1).reshape(-1, value.shape[-1])
        context = self.context.expand(*shape, -1).reshape(-1, self.context.shape[-1])
        rows = len(tokens)
        if not torch.is_grad_enabled():
            rows = max(1, _AT_A_TIME // (tokens.shape[1] * max(3 * self.head.width, self.head.num_tokens)))
        parts = zip(tokens.split(rows), context.split(rows), strict=True)
        return torch.cat([self.head.log_prob_of(*part) for part in parts]).reshape(shape)

    def _generated(self, sample_shape: torch.Size, choose: Callable[[Tensor], Tensor]) -> Tensor:
        shape = sample_shape + self.batch_shape
        context = self.context.expand(*shape, -1).reshape(-1, self.context.shape[-1])
        return self.head.generate(context, choose).to(self.context.dtype).reshape(*shape, -1)


class RecurrentText(Likelihood):
    """The probability of text by a GRU that z is told to at each step (module docstring).

    Args:
        in_shape: The shape of the features.
        event_shape: The shape of x: `(T,)`.
        num_tokens: How many different tokens there are: the end, the unknown and the vocabulary.
        width: Units of the GRU.
        embedding: Components of a token's vector.
        dropout: The probability with which a token that is read is hidden in training, in [0, 1).
        unit: What a token is, in the singular.

    Raises:
        UsageError: `event_shape` has another number of axes, a size is below 1, there are fewer than 2 tokens, or
            `dropout` is no such probability.

    Example:
        >>> head = RecurrentText((3,), (5,), num_tokens=4, width=8, embedding=2).eval()
        >>> p = head(torch.zeros(2, 3), torch.Size([2]))
        >>> x = p.sample((7,))
        >>> x.shape, p.log_prob(x).shape
        (torch.Size([7, 2, 5]), torch.Size([7, 2]))
    """

    exact = frozenset({Support.TOKENS})

    def __init__(
        self,
        in_shape: tuple[int, ...],
        event_shape: tuple[int, ...],
        num_tokens: int,
        width: int = 192,
        embedding: int = 64,
        dropout: float = 0.0,
        unit: str = "character",
    ) -> None:
        check_sizes(num_tokens=(num_tokens,), width=(width,), embedding=(embedding,))
        if len(event_shape) != 1 or num_tokens < 2 or not 0 <= dropout < 1:
            raise UsageError(
                "A likelihood of text is over x of shape (T,), of at least 2 different tokens, and hides tokens with a "
                f"probability in [0, 1); got shape {tuple(event_shape)}, {num_tokens} tokens and dropout={dropout}."
            )
        # The affine map of the features, which the base makes, needs two of these.
        self.num_tokens, self.width, self.embedding, self.dropout, self.unit = (
            num_tokens, width, embedding, dropout, unit,
        )  # fmt: skip
        super().__init__(in_shape, event_shape)
        # One row more than there are tokens: that of a hidden one.
        self.embed = nn.Embedding(num_tokens + 1, embedding)
        self.gru = GRU(embedding, width)
        self.score = Linear(width, num_tokens)

    def _affine(self) -> nn.Module:
        features = int(torch.Size(self.in_shape).numel())
        return Linear(features, self.width + self.embedding)

    def natural_mean(self, mean: Tensor) -> Tensor:
        """Nothing: numbers of symbols have no mean that says anything."""
        return mean.new_empty(0)

    def pieces(self, x: Tensor) -> tuple[str, Tensor]:
        return self.unit, token_counts(x)

    def forward(self, features: Tensor, batch: torch.Size) -> TokenSequence:
        context: Tensor = self.project(features.flatten(1))
        if context.dtype in (torch.bfloat16, torch.float16):
            context = context.float()
        return TokenSequence(self, context.reshape(*batch, -1))

    def log_prob_of(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Returns log p(x|z), nats: tokens int64 `[N, T]` and contexts `[N, C]` to `[N]`."""
        counts = token_counts(tokens)
        tokens = tokens[:, : longest(counts)]
        # A line begins after the end of another.
        read = self._hidden(F.pad(tokens[:, :-1], (1, 0)))
        states, _ = self._states(read, context, self._start(context))
        each = self._log_probs(states, tokens)
        said = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
        return (each * said).sum(1)

    @torch.no_grad()
    def generate(self, context: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns rows of tokens, int64 `[N, T]`, each chosen from the logits `[N, V]` of its place.

        Args:
            context: `[N, C]`.
            choose: Logits to tokens, `[N, V]` to `[N]`.
        """
        rows = torch.zeros(len(context), *self.event_shape, dtype=torch.long, device=context.device)
        token, state = rows[:, 0], self._start(context)
        ended = torch.zeros_like(token, dtype=torch.bool)
        for place in range(rows.shape[1]):
            states, state = self._states(token[:, None], context, state)
            token = choose(_wide(self.score(states[:, 0]))).masked_fill(ended, 0)
            rows[:, place] = token
            ended = token == 0
            if ended.all():
                break
        return rows

    def _start(self, context: Tensor) -> Tensor:
        return torch.tanh(context[:, : self.width])[None]

    def _hidden(self, read: Tensor) -> Tensor:
        if not (self.training and self.dropout):
            return read
        hidden = torch.rand(read.shape, device=read.device) < self.dropout
        hidden[:, 0] = False  # that a line begins is never in doubt
        return read.masked_fill(hidden, self.num_tokens)

    def _states(self, read: Tensor, context: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.embed(read) + context[:, None, self.width :]
        states, last = self.gru(inputs, state)
        return states, last

    def _log_probs(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Returns the log-probability of each token: `[N, T, H]` and `[N, T]` to `[N, T]`, at least float32."""
        logits = _wide(self.score(states))
        return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").reshape(tokens.shape)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _drawn(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1).squeeze(1)
