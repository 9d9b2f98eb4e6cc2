"""One objective after another.

Many draws an example are a waste while the model is far from good: a bound with one draw brings it most of the way at a
fraction of the price. What is tighter can follow at the end, when there is something to tighten.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowerbound.errors import UsageError
from lowerbound.model import VAE
from lowerbound.objectives.base import Objective, Terms


@dataclass(frozen=True)
class InTurn(Objective):
    """One objective for the first updates, and another for the rest.

    What is validated and reported is the latter.

    Attributes:
        first: What is minimised at first.
        then: What is minimised from update `after` on; it is told how many updates it has had itself.
        after: Updates with `first`.

    Raises:
        UsageError: `after` is negative.

    Example:
        >>> from lowerbound.objectives import ELBO, IWAE, DoublyReparameterised
        >>> InTurn(ELBO(), IWAE(5, DoublyReparameterised()), after=1000).at(999)
        ELBO(beta=1.0, warmup=0, num_samples=1, closed_form=True)
    """

    first: Objective
    then: Objective
    after: int

    def __post_init__(self) -> None:
        if self.after < 0:
            raise UsageError(f"InTurn's first objective is for at least 0 updates; got after={self.after}.")

    def at(self, step: int | None) -> Objective:
        """Returns the objective of an update."""
        return self.first if step is not None and step < self.after else self.then

    def given(self, factors: Tensor | None) -> InTurn:
        return InTurn(self.first.given(factors), self.then.given(factors), self.after)

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        own = step if step is None or step < self.after else step - self.after
        return self.at(step)(vae, x, own)

    def check(self, vae: VAE) -> None:
        self.first.check(vae)
        self.then.check(vae)

    def notes(self) -> list[str]:
        return [f"the first {self.after:,} updates minimised {self.first}", *self.then.notes()]
