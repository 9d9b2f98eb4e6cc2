"""pythae: its own trainer through its own pipeline, on the same network; and its own `get_nll`.

The trainer takes its turns at the beginning of each epoch, by a callback that waits there, so an epoch holds all that
the trainer does in one: its loop, its progress bar, its copy of the best model.
"""

from __future__ import annotations

import logging
import tempfile
from importlib.metadata import version
from typing import Any

import network
import numpy as np
import torch
from network import BATCH, LATENT, LR, PIXELS, SLOPE
from protocol import Line, Watch, arguments, peak_bytes, serve
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn

VERSIONS = {"pythae": version("pythae"), "torch": torch.__version__}


def hidden(layers: network.Layers) -> nn.Sequential:
    return nn.Sequential(*(part for a, b in layers for part in (nn.Linear(a, b), nn.LeakyReLU(SLOPE))))


class Encoder(BaseEncoder):
    def __init__(self) -> None:
        super().__init__()
        *before, (width, _) = network.encoder()
        self.layers = hidden(tuple(before))
        self.mean, self.log_var = nn.Linear(width, LATENT), nn.Linear(width, LATENT)

    def forward(self, x: Tensor) -> ModelOutput:
        h = self.layers(x.reshape(-1, PIXELS))
        return ModelOutput(embedding=self.mean(h), log_covariance=self.log_var(h))


class Decoder(BaseDecoder):
    def __init__(self) -> None:
        super().__init__()
        *before, last = network.decoder()
        self.layers = hidden(tuple(before))
        self.out = nn.Linear(*last)

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.out(self.layers(z))).reshape(-1, 1, 28, 28))


class Turns(TrainingCallback):
    """Makes the trainer wait before each epoch until it is asked for one, and answers for the one before."""

    def __init__(self, pipe: int) -> None:
        self.line = Line(pipe)
        self.watch: Watch | None = None
        self.loss = float("nan")

    def on_log(self, training_config: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.loss = logs["train_epoch_loss"]

    def on_epoch_begin(self, training_config: Any, **kwargs: Any) -> None:
        if self.watch is None:
            self.line.answer(versions=VERSIONS)
        else:
            self.line.answer(**self.watch.read(), loss=self.loss)
        while self.line.take()[0] == "memory":
            self.line.answer(peak_bytes=peak_bytes())
        self.watch = Watch()


def train(model: VAE, images: Tensor, turns: Turns) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1_000_000,
            learning_rate=LR,
            per_device_train_batch_size=BATCH,
            optimizer_cls="Adam",
            no_cuda=True,
        )
        TrainingPipeline(model=model, training_config=config)(train_data=images, callbacks=[turns])


def main() -> None:
    chosen = arguments("train", "evidence")
    logging.getLogger("pythae").setLevel(logging.WARNING)
    torch.manual_seed(0)
    images = torch.from_numpy(np.load(chosen.digits)).float().div_(255).view(-1, 1, 28, 28)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    if chosen.job == "train":
        train(model, images, Turns(chosen.pipe))
        return

    def evidence(count: int, samples: int) -> dict[str, float]:
        return {"log_px": float(model.eval().get_nll(images[:count], n_samples=samples, batch_size=BATCH))}

    serve(chosen.pipe, {"evidence": evidence}, **VERSIONS)


if __name__ == "__main__":
    main()
