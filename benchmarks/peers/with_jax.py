"""JAX, the way of NumPyro's VAE example: a whole epoch is one compiled loop; Adam is optax's.

The digits stay in memory as bytes and are shuffled and turned into float32 inside the loop. There is no Python between
the first update of an epoch and the last. The first epoch compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
from jax import Array
from network import BATCH, LATENT, LR, SLOPE
from protocol import arguments, serve

# Decoder inputs a pass when the evidence is measured.
ROWS = 2000

Weights = list[tuple[Array, Array]]


def initial(key: Array, layers: network.Layers) -> Weights:
    keys = jax.random.split(key, len(layers))
    return [
        (jax.random.uniform(k, (a, b), minval=-(a**-0.5), maxval=a**-0.5), jnp.zeros(b))
        for k, (a, b) in zip(keys, layers, strict=True)
    ]


def through(weights: Weights, h: Array) -> Array:
    for place, (w, b) in enumerate(weights):
        h = h @ w + b
        if place + 1 < len(weights):
            h = jax.nn.leaky_relu(h, SLOPE)
    return h


def posterior(weights: Weights, x: Array) -> tuple[Array, Array]:
    mean, log_var = jnp.split(through(weights, x), [LATENT], axis=-1)
    return mean, log_var


def cross_entropy(logits: Array, x: Array) -> Array:
    return jnp.sum(jax.nn.softplus(logits) - x * logits, -1)


def loss_of(weights: tuple[Weights, Weights], x: Array, key: Array) -> Array:
    mean, log_var = posterior(weights[0], x)
    z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
    kl = -0.5 * jnp.sum(1 + log_var - mean**2 - jnp.exp(log_var), -1)
    return jnp.sum(cross_entropy(through(weights[1], z), x) + kl)


def training(digits: Array) -> Callable[[], dict[str, float]]:
    optimiser = optax.adam(LR)

    def update(carry: tuple[Any, Any], seen: tuple[Array, Array]) -> tuple[tuple[Any, Any], Array]:
        weights, moments = carry
        index, key = seen
        x = digits[index].astype(jnp.float32) / 255
        loss, gradient = jax.value_and_grad(loss_of)(weights, x, key)
        changes, moments = optimiser.update(gradient, moments)
        return (optax.apply_updates(weights, changes), moments), loss

    @partial(jax.jit, donate_argnums=0)
    def whole_epoch(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], Array]:
        shuffled, noise = jax.random.split(key)
        batches = len(digits) // BATCH
        order = jax.random.permutation(shuffled, len(digits))[: batches * BATCH].reshape(batches, BATCH)
        carry, losses = jax.lax.scan(update, carry, (order, jax.random.split(noise, batches)))
        return carry, losses.sum() / order.size

    down, up, key = jax.random.split(jax.random.key(0), 3)
    weights = (initial(down, network.encoder()), initial(up, network.decoder()))
    now = {"carry": (weights, optimiser.init(weights)), "key": key}

    def epoch() -> dict[str, float]:
        now["key"], this = jax.random.split(now["key"])
        now["carry"], loss = whole_epoch(now["carry"], this)
        jax.block_until_ready(now["carry"])
        return {"loss": float(loss)}

    return epoch


def evidence(digits: Array) -> Callable[[int, int], dict[str, float]]:
    down, up, key = jax.random.split(jax.random.key(0), 3)
    encoder, decoder = initial(down, network.encoder()), initial(up, network.decoder())

    def log_weights(x: Array, draws: int, key: Array) -> Array:
        mean, log_var = posterior(encoder, x)
        noise = jax.random.normal(key, (draws, LATENT))
        z = mean + jnp.exp(0.5 * log_var) * noise
        log_ratio = 0.5 * jnp.sum(noise**2 + log_var - z**2, -1)
        return log_ratio - cross_entropy(through(decoder, z), x)

    @partial(jax.jit, static_argnums=(1, 2))
    def log_px(images: Array, passes: int, draws: int, key: Array) -> Array:
        def one(x: Array, key: Array) -> Array:
            parts = jax.lax.map(lambda k: log_weights(x, draws, k), jax.random.split(key, passes))
            return jax.nn.logsumexp(parts) - jnp.log(parts.size)

        return jax.lax.map(lambda seen: one(*seen), (images, jax.random.split(key, len(images)))).mean()

    def measure(images: int, samples: int) -> dict[str, float]:
        draws = min(samples, ROWS)
        x = digits[:images].astype(jnp.float32) / 255
        return {"log_px": float(log_px(x, -(-samples // draws), draws, key))}

    return measure


def main() -> None:
    chosen = arguments("train", "evidence")
    digits = jnp.asarray(np.load(chosen.digits))
    commands = {"epoch": training(digits)} if chosen.job == "train" else {"evidence": evidence(digits)}
    serve(chosen.pipe, commands, jax=version("jax"), jaxlib=version("jaxlib"), optax=version("optax"))


if __name__ == "__main__":
    main()
