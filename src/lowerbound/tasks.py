"""What a trained model is asked to do: sample, reconstruct, encode, interpolate.

All run in evaluation mode without gradients, on the model's own device, and return tensors on the CPU. A picture of
p(x|z) is its mean unless a draw is asked for.

Of a conditional model, each works on `vae.given(label)`. Where labels are at hand (`encode`), or there is a natural
choice (`sample`), the model itself will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lowerbound.data import Source, batches, derive_seed
from lowerbound.discrete import CodeMass
from lowerbound.errors import UsageError
from lowerbound.evidence.checks import draw as draw_z
from lowerbound.model import VAE
from lowerbound.training import seed_everything

_BATCH = 500


@contextmanager
def inference(vae: VAE, seed: int = 0) -> Iterator[torch.device]:
    """Runs the body in evaluation mode, without gradients and with seeded noise; yields the model's device.

    The mode and torch's generator are put back afterwards.
    """
    device = next(vae.parameters()).device
    was_training = vae.training
    vae.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        seed_everything(derive_seed(seed, 2), device)
        try:
            yield device
        finally:
            vae.train(was_training)


def sample(vae: VAE, n: int, *, label: int | Tensor | None = None, seed: int = 0, draw: bool = False) -> Tensor:
    """Generates: z ~ p(z), then x from p(x|z).

    A model whose training repeated rare classes generates them as often as they occur: its draws are kept with
    probability 1 / repeats (`lowerbound.data.tables.balance`).

    Args:
        vae: The model.
        n: How many, at least 1.
        label: Of a conditional model, the class to generate, or one for each example, `[n]`; by default as many of each
            class as can be, one class after another (`labels_to_sample`).
        seed: Seeds the draws.
        draw: Draw x from p(x|z) instead of taking its mean.

    Returns:
        x, `[n, *event]`.

    Raises:
        UsageError: `n` is below 1, or the model knows no such label, or none at all.
    """
    labels = labels_to_sample(vae, n, label)
    with inference(vae, seed):
        whole, parts = vae.given(labels), []
        for start in range(0, n, _BATCH):
            rows = slice(start, min(start + _BATCH, n))
            one = whole.part(rows)
            parts.append(_generated(one, rows.stop - start, draw))
        return torch.cat(parts)


def _generated(vae: VAE, n: int, draw: bool) -> Tensor:
    """Generates n examples, of the distribution of the data where training saw some more often than they occur."""
    kept, missing = [], n
    while missing > 0:
        (z,) = draw_z(vae.prior(), 1, n)
        p, log_kept = vae.likelihood.restored(vae.decoder(z))
        x: Tensor = p.sample() if draw else p.mean
        if log_kept is not None:
            # Which z are kept, by the share of their draws that would be; p is of those that are.
            x = x[torch.rand(n, device=x.device).log() < log_kept.sum(-1)]
        kept.append(x[:missing].cpu())
        missing -= len(kept[-1])
    return torch.cat(kept)


def labels_to_sample(vae: VAE, n: int, label: int | Tensor | None = None) -> Tensor | None:
    """Returns the label of each of n samples, int64 `[n]`; None for a model that is not conditional.

    Args:
        vae: The model.
        n: How many, at least 1.
        label: The class, or a label for each; by default as many of each class as can be (one more of the first where n
            cannot be divided), in the order of `vae.classes`.

    Raises:
        UsageError: `n` is below 1, or the model knows no such label, or none at all.
    """
    if n < 1:
        raise UsageError(f"A sample has at least 1 example; got n={n}.")
    if not vae.classes:
        if label is not None:
            raise _not_conditional(label)
        return None
    if label is None:
        return torch.tensor(vae.classes)[(torch.arange(n) % len(vae.classes)).sort().values]
    labels = torch.as_tensor(label)
    vae.check_labels(labels)
    if labels.shape not in ((), (n,)):
        raise UsageError(f"{n} samples have one label each, or one for all; got labels of shape {tuple(labels.shape)}.")
    return labels.expand(n)


def reconstruct(vae: VAE, x: Tensor, *, seed: int = 0, draw: bool = False) -> Tensor:
    """Encodes examples to the mean of q(z|x) and decodes that.

    Of a ladder every layer counts: each is at the mean of q(z_l|z_>l, x), given x and the means of the layers above.

    Args:
        vae: The model.
        x: `[B, *event]`.
        seed: Seeds the draws.
        draw: Draw z from q(z|x) and x from p(x|z) instead of taking their means.

    Returns:
        The reconstructions, `[B, *event]`.
    """
    with inference(vae, seed) as device:
        q = vae.encoder(x.to(device))
        return _picture(vae, q.rsample() if draw else q.mean, draw)


def encode(
    vae: VAE, source: Source, *, index: Tensor | None = None, seed: int = 0, draw: bool = False
) -> dict[str, Tensor]:
    """Encodes a source.

    Args:
        vae: The model.
        source: The examples.
        index: Which of them, int64 `[N]`; all by default.
        seed: Seeds the draws, and a dynamic binarisation.
        draw: Add one draw from q(z|x).

    Returns:
        `loc` and `scale`, the mean and standard deviation of q(z|x), each `[N, *latent]`, where they have no closed
        form (a ladder's, a flowed posterior's) estimated from 64 fixed pairs of opposite draws; `z`, one draw, if asked
        for; `code`, int64 `[N, T]`, if z is a sequence of discrete codes; and `label`, `[N]`, if the source has labels.
    """
    parts: dict[str, list[Tensor]] = {}
    for block in encoded(vae, source, index=index, seed=seed, draw=draw):
        for name, value in block.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def encoded(
    vae: VAE, source: Source, *, index: Tensor | None = None, seed: int = 0, draw: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Yields the same, 500 examples at a time, so that memory does not grow with their number.

    Args:
        vae: The model.
        source: See `encode`, as for all else.
        index: Which examples, int64 `[N]`; all by default.
        seed: Seeds the draws.
        draw: Add one draw from q(z|x).
    """
    wanted = torch.arange(len(source)) if index is None else index
    for number, rows in enumerate(wanted.split(_BATCH)):
        # Anew for each block: what the caller does between two of them must see neither mode nor generator changed.
        with inference(vae, derive_seed(seed, 8, number)) as device:
            (batch,) = batches(source, rows, _BATCH, device)
            q = vae.given(batch.label).encoder(batch.x)
            loc, scale = vae.encoder.head.moments(q)
            found = {"loc": loc, "scale": scale}
            if isinstance(q, CodeMass):
                found["code"] = q.codes
            if draw:
                found["z"] = q.rsample()
        if batch.label is not None:
            found["label"] = batch.label
        yield {name: value.cpu() for name, value in found.items()}


def interpolate(
    vae: VAE,
    start: Tensor,
    end: Tensor,
    steps: int,
    *,
    label: Tensor | None = None,
    along: int | None = None,
) -> Tensor:
    """Decodes the points of a straight line between the codes of two examples.

    A conditional model encodes each end with its own label, and decodes the whole line as one class: between two labels
    there is none. Where the ends share a class it is theirs, so that the ends come out as reconstructions; else `along`
    says which, and an end of another class comes out as one of that class in the same style.

    The codes of a ladder are those of all its layers, and the line is straight in the noise of the prior's descent, so
    that on the way each layer is as p expects it below the others (`lowerbound.model.LadderPrior.between`).

    Where codes are discrete, the line is between their vectors, and only its ends are codes that the decoder has seen.

    Args:
        vae: The model.
        start: One example, `[*event]`.
        end: Another.
        steps: How many points, both ends included; at least 2.
        label: Of a conditional model, the labels of the two examples, `[2]`; a plain one is told nothing.
        along: Of a conditional model, the class that the line is decoded as; the ends' own by default.

    Returns:
        The decoded points, `[steps, *event]`.

    Raises:
        UsageError: `steps` is below 2, the ends are of two classes and `along` is missing, or the model knows no such
            label, or none at all.
    """
    if steps < 2:
        raise UsageError(f"An interpolation has at least its two ends; got steps={steps}.")
    line = _line(vae, label, along)
    with inference(vae) as device:
        loc = vae.given(label).encoder(torch.stack([start, end]).to(device)).mean
        weight = torch.linspace(0, 1, steps, dtype=loc.dtype, device=device).reshape(-1, *[1] * (loc.ndim - 1))
        return _picture(line, line.prior.between(loc[:1], loc[1:], weight), draw=False)


def _line(vae: VAE, label: Tensor | None, along: int | None) -> VAE:
    """Returns the model that decodes a line between two examples with these labels."""
    if not vae.classes:
        if along is not None:
            raise _not_conditional(along)
        return vae
    vae.check_labels(label)
    found = [] if label is None else label.tolist()
    if along is None and len(set(found)) > 1:
        raise UsageError(
            f"The two examples are of the classes {' and '.join(map(str, found))}, and between two classes there is no "
            f"class. Say which the line is to be of (along={found[0]} in Python, --label {found[0]} on the command "
            "line), or choose examples of one class."
        )
    return vae.given(found[0] if along is None else along)


def _not_conditional(label: object) -> UsageError:
    return UsageError(
        f"The label {label} was asked for, but this model is not conditional: it was told no labels in training, so it "
        "cannot make examples of one class. Leave the label out, or train one that can (lowerbound train conditional)."
    )


def _picture(vae: VAE, z: Tensor, draw: bool) -> Tensor:
    p = vae.decoder(z)
    x: Tensor = p.sample() if draw else p.mean
    return x.cpu()
