"""How long an epoch takes: the tutorial's network on MNIST, ours beside the loops that people write.

Every contestant trains the same network (784-400-400-200, LeakyReLU, float32) with batches of 100 on all 60,000
images. They take turns in one process, so that a slower machine slows them all; the ratio of medians is what counts.

* **notebook**: a data set that opens each item through Pillow, a DataLoader, sigmoid and binary_cross_entropy, the
  loss read at every update: the loop of most tutorials.
* **plain**: the images as one tensor in memory, twenty lines of torch.
* **lowerbound**: the recipe `tutorial`, as `lowerbound train` runs it; once in float32, and once with `auto` precision.

    python benchmarks/throughput.py --rounds 3 --json throughput.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lowerbound as lb
from lowerbound.recipes import tutorial
from lowerbound.training import Precision, TrainState

BATCH = 100


class Textbook(nn.Module):
    """The tutorial's network as tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.e1, self.e2 = nn.Linear(784, 400), nn.Linear(400, 400)
        self.mean, self.log_var = nn.Linear(400, 200), nn.Linear(400, 200)
        self.d1, self.d2, self.out = nn.Linear(200, 400), nn.Linear(400, 400), nn.Linear(400, 784)
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.act(self.e2(self.act(self.e1(x))))
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.out(self.act(self.d2(self.act(self.d1(z))))), mean, log_var


class Pictures(Dataset):
    """Items made one by one, as the usual image data sets and their conversion to tensors make them.

    A row of the tensor becomes a Pillow image, that an array, that a tensor with the channels last, then first, then
    float, then divided by 255; the label travels along.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.images[index].numpy())
        pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True))
        pixels = pixels.view(picture.size[1], picture.size[0], len(picture.getbands()))
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255), int(self.labels[index])


def kl(mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())


def notebook(images: Tensor, labels: Tensor) -> Callable[[], None]:
    model = Textbook()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Pictures(images, labels), batch_size=BATCH, shuffle=True)

    def epoch() -> None:
        total = 0.0
        for batch, _ in loader:
            x = batch.view(BATCH, 784)
            optimiser.zero_grad()
            logits, mean, log_var = model(x)
            loss = F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum") + kl(mean, log_var)
            total += loss.item()
            loss.backward()
            optimiser.step()

    return epoch


def plain(images: Tensor) -> Callable[[], None]:
    model = Textbook()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    flat = images.view(-1, 784)

    def epoch() -> None:
        for index in torch.randperm(len(flat)).split(BATCH):
            x = flat[index].float().div_(255)
            logits, mean, log_var = model(x)
            loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl(mean, log_var)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return epoch


def ours(data: lb.Data, precision: Precision) -> Callable[[], None]:
    run = tutorial(data, epochs=10_000)
    training = replace(run.training, precision=precision)
    state = TrainState(run.vae, training, torch.device("cpu"))
    steps = lb.train(run.vae, run.data.train, run.objective, training, state=state)

    def epoch() -> None:
        for step in steps:
            if step.epoch_ends:
                return

    return epoch


def measure(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Lets each run one epoch in turn, after an uncounted one, and returns the seconds of each epoch."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, epoch in contestants.items():
            began = time.perf_counter()
            epoch()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="counted epochs of each contestant")
    parser.add_argument("--json", type=Path, help="also write the measurements here")
    options = parser.parse_args()
    data = lb.open_data("mnist")
    learned = data.joined().train
    images, labels = learned.values.squeeze(1), learned.labels
    torch.manual_seed(0)
    contestants = {
        "notebook": notebook(images, labels),
        "plain": plain(images),
        "lowerbound fp32": ours(data, Precision.FP32),
        "lowerbound auto": ours(data, Precision.AUTO),
    }
    seconds = measure(contestants, options.rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    table = Table("contestant", "seconds an epoch (median)", "spread", "against the notebook's loop")
    for name, times in seconds.items():
        ratio = f"{medians['notebook'] / medians[name]:.2f} x"
        table.add_row(name, f"{medians[name]:.2f}", f"{min(times):.2f} to {max(times):.2f}", ratio)
    Console().print(table)
    if options.json:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
        machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        record = {"command": sys.argv, "commit": commit.strip(), **machine, "seconds": seconds}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
