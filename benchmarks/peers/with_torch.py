"""Plain torch, three ways.

* `notebook`: a data set that opens each item through Pillow, a DataLoader, sigmoid and binary_cross_entropy, the loss
  read at every update: the loop of most tutorials.
* `plain`: the images as one tensor in memory, twenty lines of torch.
* `products-fp32`, `products-bf16`: the matrix products of the network and nothing else, by torch.mm: what the machine
  can do. `products-onednn` makes those in float32 by oneDNN's kernels, through an operator of torch's that is not
  public: on some processors they are twice as fast as those that torch.mm has.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import network
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from network import BATCH, LATENT, LR, PIXELS, SLOPE, WIDTH
from PIL import Image
from protocol import arguments, serve
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Multiply = Callable[[Tensor, Tensor, Tensor], None]
# Decoder inputs a pass when the evidence is measured.
ROWS = 2000


class Textbook(nn.Module):
    """The network as tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.e1, self.e2 = nn.Linear(PIXELS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mean, self.log_var = nn.Linear(WIDTH, LATENT), nn.Linear(WIDTH, LATENT)
        self.d1, self.d2, self.out = nn.Linear(LATENT, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, PIXELS)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.act(self.e2(self.act(self.e1(x))))
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.out(self.act(self.d2(self.act(self.d1(z))))), mean, log_var


class Pictures(Dataset):
    """Items made one by one, as the usual image data sets and their conversion to tensors make them.

    A row of the tensor becomes a Pillow image, that an array, that a tensor with the channels last, then first, then
    float, then divided by 255; a label travels along.
    """

    def __init__(self, images: Tensor) -> None:
        self.images, self.labels = images, torch.zeros(len(images), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.images[index].numpy())
        pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True))
        pixels = pixels.view(picture.size[1], picture.size[0], len(picture.getbands()))
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255), int(self.labels[index])


def kl(mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())


def notebook(digits: Tensor) -> Callable[[], dict[str, float]]:
    model = Textbook()
    optimiser = torch.optim.Adam(model.parameters(), lr=LR)
    loader = DataLoader(Pictures(digits.view(-1, 28, 28)), batch_size=BATCH, shuffle=True)

    def epoch() -> dict[str, float]:
        total = 0.0
        for batch, _ in loader:
            x = batch.view(-1, PIXELS)
            optimiser.zero_grad()
            logits, mean, log_var = model(x)
            loss = F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum") + kl(mean, log_var)
            total += loss.item()
            loss.backward()
            optimiser.step()
        return {"loss": total / len(digits)}

    return epoch


def plain(digits: Tensor) -> Callable[[], dict[str, float]]:
    model = Textbook()
    optimiser = torch.optim.Adam(model.parameters(), lr=LR)

    def epoch() -> dict[str, float]:
        total = torch.zeros(())
        for index in torch.randperm(len(digits)).split(BATCH):
            x = digits[index].float().div_(255)
            logits, mean, log_var = model(x)
            loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl(mean, log_var)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
        return {"loss": total.item() / len(digits)}

    return epoch


class Products:
    """The matrix products of some layers, into memory that is there already.

    Args:
        layers: Inputs and outputs of each.
        rows: Examples at a time.
        dtype: The arithmetic.
        gradients: Whether to make those of the gradients too: by the weights of each layer, and by the inputs of all
            but the first.
        multiply: Takes two matrices and a place for their product.
    """

    def __init__(
        self, layers: network.Layers, rows: int, dtype: torch.dtype, gradients: bool, multiply: Multiply
    ) -> None:
        self.products, self.multiply = [], multiply
        for place, (a, b) in enumerate(layers):
            x, w, g = (torch.randn(shape).to(dtype) for shape in ((rows, a), (b, a), (rows, b)))
            factors = [(x, w.T)]
            if gradients:
                factors += [(g.T, x), (g, w)][: 2 if place else 1]
            self.products += [(left, right, left @ right) for left, right in factors]

    def __call__(self, times: int) -> None:
        for _ in range(times):
            for left, right, out in self.products:
                self.multiply(left, right, out)


def by_mm(left: Tensor, right: Tensor, out: Tensor) -> None:
    torch.mm(left, right, out=out)


def by_onednn(left: Tensor, right: Tensor, out: Tensor) -> None:
    torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")


PRODUCTS = {
    "products-fp32": (torch.float32, by_mm),
    "products-onednn": (torch.float32, by_onednn),
    "products-bf16": (torch.bfloat16, by_mm),
}


def products(digits: Tensor, dtype: torch.dtype, multiply: Multiply) -> dict[str, Callable[..., None]]:
    training = Products(network.encoder() + network.decoder(), BATCH, dtype, gradients=True, multiply=multiply)
    decoding = Products(network.decoder(), ROWS, dtype, gradients=False, multiply=multiply)
    # Who has no such kernels breaks here and not in a turn.
    training(1)

    def epoch() -> None:
        training(math.ceil(len(digits) / BATCH))

    def evidence(images: int, samples: int) -> None:
        passes, left = divmod(images * samples, ROWS)
        if left:
            raise ValueError(f"Ask for a multiple of {ROWS} draws in all.")
        decoding(passes)

    return {"epoch": epoch, "evidence": evidence}


def main() -> None:
    chosen = arguments("notebook", "plain", *PRODUCTS)
    torch.manual_seed(0)
    digits = torch.from_numpy(np.load(chosen.digits))
    match chosen.job:
        case "notebook":
            commands = {"epoch": notebook(digits)}
        case "plain":
            commands = {"epoch": plain(digits)}
        case _:
            commands = products(digits, *PRODUCTS[chosen.job])
    serve(chosen.pipe, commands, torch=torch.__version__)


if __name__ == "__main__":
    main()
