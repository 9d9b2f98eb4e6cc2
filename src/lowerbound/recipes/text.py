"""A recipe for lines of text."""

from __future__ import annotations

import enum
from dataclasses import replace

import lowerbound as lb
from lowerbound.errors import UsageError
from lowerbound.recipes.base import Run, swift


class UnitName(enum.StrEnum):
    """What a token of text can be, by name."""

    AUTO = "auto"
    BYTES = "bytes"
    CHARACTERS = "characters"
    WORDS = "words"


def text(
    data: lb.Data,
    *,
    unit: UnitName = UnitName.AUTO,
    most: int | None = None,
    longest: int | None = None,
    latent_dim: int = 16,
    width: int = 128,
    read_width: int = 64,
    embedding: int = 64,
    dropout: float = 0.0,
    free_nats: float = 0.4,
    average: float = 0.99,
    patience: int = 0,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float = 3e-3,
) -> Run:
    """Lines of text: a GRU reads from both ends, and a GRU that is told z at each step writes.

    Bowman et al. (2016), with free bits (Kingma et al., 2016) against posterior collapse: what each component of z says
    within its free nats costs nothing, so the writer does not learn to do without z.

    Args:
        data: The data set, a file with a line for each example.
        unit: What a token is: bytes, characters or words; auto is as the data were opened, so characters as a rule.
        most: Symbols in the vocabulary at most, 10,000 by default; rarer ones are read as unknown.
        longest: Tokens a line at most, 256 by default; longer ones are cut.
        latent_dim: Components of z.
        width: Units of the GRU that writes.
        read_width: Units of each of the two that read.
        embedding: Components of a token's vector.
        dropout: The probability with which a token that the writer reads is hidden in training.
        free_nats: What each component of z may say for nothing; 0 for the plain ELBO.
        average: Decay of the moving average of the weights; 0 for none.
        patience: Stop after so many epochs without a better validation loss; 0 to train through.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    data, reading = _read_as(data, unit, most, longest)
    down = lb.nn.TokenEncoder(data.event_shape, reading.num_tokens, read_width, embedding)
    up = lb.nn.MLP((latent_dim,), (width,))
    head = lb.heads.RecurrentText(
        up.out_shape, data.event_shape, reading.num_tokens, width, embedding, dropout, reading.unit.piece
    )
    vae = lb.VAE(
        encoder=lb.heads.Conditional(down, lb.heads.DiagonalNormal(down.out_shape, (latent_dim,))),
        decoder=lb.heads.Conditional(up, head),
        prior=lb.priors.StandardNormal(latent_dim),
    )
    return Run(data, vae, lb.objectives.FreeBits(free_nats), swift(epochs, batch_size, lr, average, patience))


def _read_as(data: lb.Data, unit: UnitName, most: int | None, longest: int | None) -> tuple[lb.Data, lb.data.Text]:
    """Returns the data read in the way that is asked for, and that way as it fits the file."""
    opened = data.view.reading
    if not isinstance(opened, lb.data.Text):
        raise UsageError(
            f"The recipe text learns from lines of text, and {data.name} has x of shape {data.event_shape} with "
            f"support {data.support.value}. Give --data FILE.txt, or another recipe."
        )
    asked = lb.data.Text(
        unit=opened.unit if unit == UnitName.AUTO else lb.data.Unit(unit),
        most=opened.most if most is None else most,
        longest=opened.longest if longest is None else longest,
    )
    if asked != replace(opened, symbols=None, length=None):
        data = replace(data.view, reading=asked).of(data.name)
        opened = data.view.reading
        assert isinstance(opened, lb.data.Text)
    return data, opened
