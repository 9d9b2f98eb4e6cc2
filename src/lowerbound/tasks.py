"""What a trained model is asked to do: sample, reconstruct, encode, interpolate.

All run in evaluation mode without gradients, on the model's own device, and return tensors on the CPU. A picture of
p(x|z) is its mean unless a draw is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lowerbound.data import Source, batches, derive_seed
from lowerbound.discrete import CodeMass
from lowerbound.errors import UsageError
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


def sample(vae: VAE, n: int, *, seed: int = 0, draw: bool = False) -> Tensor:
    """Generates: z ~ p(z), then x from p(x|z).

    Args:
        vae: The model.
        n: How many, at least 1.
        seed: Seeds the draws.
        draw: Draw x from p(x|z) instead of taking its mean.

    Returns:
        x, `[n, *event]`.

    Raises:
        UsageError: `n` is below 1.
    """
    if n < 1:
        raise UsageError(f"A sample has at least 1 example; got n={n}.")
    with inference(vae, seed):
        parts = []
        for start in range(0, n, _BATCH):
            z = vae.prior().sample(torch.Size([min(_BATCH, n - start)]))
            parts.append(_picture(vae, z, draw))
        return torch.cat(parts)


def reconstruct(vae: VAE, x: Tensor, *, seed: int = 0, draw: bool = False) -> Tensor:
    """Encodes examples to the mean of q(z|x) and decodes that.

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
        `loc` and `scale`, the mean and standard deviation of q(z|x), each `[N, *latent]`; `z`, one draw, if asked for;
        `code`, int64 `[N, T]`, if z is a sequence of discrete codes; and `label`, `[N]`, if the source has labels.
    """
    parts: dict[str, list[Tensor]] = {}
    wanted = torch.arange(len(source)) if index is None else index
    with inference(vae, seed) as device:
        for batch in batches(source, wanted, _BATCH, device):
            q = vae.encoder(batch.x)
            found = {"loc": q.mean, "scale": q.stddev}
            if isinstance(q, CodeMass):
                found["code"] = q.codes
            if draw:
                found["z"] = q.rsample()
            for name, value in found.items():
                parts.setdefault(name, []).append(value.cpu())
    encoded = {name: torch.cat(values) for name, values in parts.items()}
    if source.labels is not None:
        encoded["label"] = source.labels.cpu()[wanted]
    return encoded


def interpolate(vae: VAE, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Decodes the points of a straight line between the codes of two examples.

    Where codes are discrete, the line is between their vectors, and only its ends are codes that the decoder has seen.

    Args:
        vae: The model.
        start: One example, `[*event]`.
        end: Another.
        steps: How many points, both ends included; at least 2.

    Returns:
        The decoded points, `[steps, *event]`.

    Raises:
        UsageError: `steps` is below 2.
    """
    if steps < 2:
        raise UsageError(f"An interpolation has at least its two ends; got steps={steps}.")
    with inference(vae) as device:
        loc = vae.encoder(torch.stack([start, end]).to(device)).mean
        weight = torch.linspace(0, 1, steps, device=device).reshape(-1, *[1] * (loc.ndim - 1))
        return _picture(vae, torch.lerp(loc[:1], loc[1:], weight), draw=False)


def _picture(vae: VAE, z: Tensor, draw: bool) -> Tensor:
    p = vae.decoder(z)
    x: Tensor = p.sample() if draw else p.mean
    return x.cpu()
