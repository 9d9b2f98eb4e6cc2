"""What every track is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How much to measure, and with what.

    Attributes:
        rounds: Counted rounds.
        threads: Processors for each contestant.
        tiny: Everything as small as it can be: to see that it runs, not to learn how fast.
        digits: The data set of the digits.
        recipe: What `quality` trains.
        changes: Settings of that recipe, by name.
        seeds: How many trainings `quality` makes.
    """

    rounds: int
    threads: int
    tiny: bool
    digits: str
    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    seeds: int = 5

    def sized(self, usual: Any, tiny: Any) -> Any:
        """Returns the usual size, or the tiny one where that is asked for."""
        return tiny if self.tiny else usual

    def __str__(self) -> str:
        """For the titles of tables."""
        size = "; tiny, which says nothing of speed" if self.tiny else ""
        return f"{self.threads} threads, {self.rounds} rounds{size}"
