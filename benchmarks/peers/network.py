"""The network that every contestant trains, and how many floating-point operations it takes.

784-400-400-200 and back, LeakyReLU(0.2), a normal posterior with a diagonal covariance, grey pixels under binary
cross-entropy, batches of 100, Adam with a step of 1e-3: the network of the recipe `tutorial`.

One multiplication and one addition for each weight and example go forward, the same again for the gradient by the
weights, and the same again for the gradient by the inputs, which the pixels do not need. Everything else (noise,
densities, activations, the optimiser) is left out of the count: it is not what matrix units are for.
"""

from __future__ import annotations

PIXELS = 784
WIDTH = 400
LATENT = 200
SLOPE = 0.2
BATCH = 100
LR = 1e-3

Layers = tuple[tuple[int, int], ...]


def encoder(width: int = WIDTH) -> Layers:
    """Inputs and outputs of each layer; mean and log-variance are one layer's outputs."""
    return (PIXELS, width), (width, width), (width, 2 * LATENT)


def decoder(width: int = WIDTH) -> Layers:
    return (LATENT, width), (width, width), (width, PIXELS)


def forward_flops(layers: Layers) -> int:
    """Operations an example."""
    return sum(2 * a * b for a, b in layers)


def training_flops(width: int = WIDTH) -> int:
    """Operations an example of one update."""
    layers = encoder(width) + decoder(width)
    return 3 * forward_flops(layers) - forward_flops(layers[:1])


def evidence_flops(images: int, samples: int) -> int:
    """Operations of so many draws for each image: the encoder once an image, the decoder once a draw."""
    return images * (forward_flops(encoder()) + samples * forward_flops(decoder()))
