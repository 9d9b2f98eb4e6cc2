"""Bits per character of a word list: the recipe `text` beside a language model of the same size.

The list is Debian's American English one (package wamerican, 104,334 words), split 80/10/10 by the file's own fixed
order. The language model is the writer of the VAE, told nothing: the same GRU, embedding, budget, step and averaged
weights, so that what differs is z alone. Its log p(x) is exact; the VAE's is the importance-weighted bound, so its bits
are an upper bound. The settings were chosen on the validation words; the test words are looked at once, at the end.

    python benchmarks/text.py                            /usr/share/dict/words, one seed: some minutes on one core
    python benchmarks/text.py --data FILE --seeds 0 1 2 --json docs/results/text.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import lowerbound as lb
from lowerbound.data import generator
from lowerbound.evaluation.summary import per_piece
from lowerbound.experiment import prepare
from lowerbound.metrics import active_units
from lowerbound.recipes import RECIPES
from lowerbound.training import Precision

CONSOLE = Console(stderr=True, highlight=False)
BATCH = 500


class Nothing(lb.nn.Network):
    """Features that say nothing: what follows is a language model."""

    def __init__(self, in_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = in_shape, (1,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), 1)


def language_model(head: lb.heads.RecurrentText) -> lb.VAE:
    """The writer of a VAE, new, as a model of lines that is told nothing of them."""
    down, up = lb.nn.MLP(head.event_shape, (1,)), Nothing((1,))
    own = lb.heads.RecurrentText((1,), head.event_shape, head.num_tokens, head.width, head.embedding, unit=head.unit)
    return lb.VAE(
        encoder=lb.heads.Conditional(down, lb.heads.Delta((1,), (1,))),
        decoder=lb.heads.Conditional(up, own),
        prior=lb.priors.StandardNormal(1),
    )


def fitted(vae: lb.VAE, run: lb.Run, objective: lb.objectives.Objective, name: str) -> float:
    """Trains and returns the seconds of the processor that it took."""
    began = time.process_time()

    def told(record: dict[str, float]) -> None:
        CONSOLE.print(f"{name}: epoch {record['epoch']}, validation distortion {record['valid_distortion']:.3f}")

    lb.fit(vae, run.data, objective, run.training, device=torch.device("cpu"), on_epoch=told)
    return time.process_time() - began


@torch.no_grad()
def exact(vae: lb.VAE, source: lb.Source) -> torch.Tensor:
    """Log p(x) of a language model, `[n]`."""
    parts = torch.arange(len(source)).split(BATCH)
    return torch.cat([vae.trace(source.examples(part).x).log_px_z[0] for part in parts])


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def one(data: lb.Data, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains both with one seed and measures them on the same test words."""
    changes = {"seed": seed, "precision": Precision.FP32}
    run = prepare(RECIPES["text"], data, {"epochs": options.epochs}, changes)
    head = run.vae.likelihood
    assert isinstance(head, lb.heads.RecurrentText)
    model = language_model(head)
    plain = replace(run, vae=model)
    seconds = {
        "language_model": fitted(model, plain, lb.Reconstruction(), f"language model, seed {seed}"),
        "vae": fitted(run.vae, run, run.objective, f"VAE, seed {seed}"),
    }
    test = data.test.take(torch.randperm(len(data.test), generator=generator(7))[: options.limit])
    x = test.examples(torch.arange(len(test))).x
    counts = lb.nn.token_counts(x)
    theirs = per_piece("character", exact(model, test), counts)
    ours = lb.evaluate(run.vae, test, num_samples=options.samples, gap=0)
    means = lb.encode(run.vae, data.test)["loc"]
    bits, beside = ours.per_piece["bits_per_character"], theirs["bits_per_character"]
    every = exact(model, data.test)
    all_counts = lb.nn.token_counts(data.test.examples(torch.arange(len(data.test))).x)
    return {
        "seed": seed,
        "vae": dict(ours.per_piece),
        "language_model": theirs,
        "language_model_on_all_test_words": per_piece("character", every, all_counts),
        "excess_percent": 100 * (bits / beside - 1),
        "elbo_bits_per_character": -ours.elbo * len(test) / (counts.sum().item() * math.log(2)) if ours.elbo else None,
        "rate": ours.rate,
        "mutual_information": ours.mutual_information,
        "active_units": int(active_units(means).sum()),
        "latent_dim": means.shape[1],
        "khat_bad": ours.khat_bad,
        "processor_seconds": seconds,
        "parameters": {"language_model": size(model.likelihood), "writer": size(head), "vae": size(run.vae)},
        **shown(run.vae, data),
    }


def shown(vae: lb.VAE, data: lb.Data) -> dict[str, Any]:
    """What the model makes, as text."""
    reading = data.view.reading
    assert reading is not None
    x = data.test.examples(torch.arange(10)).x
    pairs = zip(reading.lines(x), reading.lines(lb.reconstruct(vae, x)), strict=True)
    return {
        "samples": reading.lines(lb.sample(vae, 20, draw=True)),
        "likeliest_of_a_z": reading.lines(lb.sample(vae, 20)),
        "reconstructions": [list(pair) for pair in pairs],
        "interpolations": [reading.lines(lb.interpolate(vae, x[i], x[i + 1], 8)) for i in range(0, 8, 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="/usr/share/dict/words", help="the word list")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=5, help="of both")
    parser.add_argument("--samples", type=int, default=500, help="draws a word for the VAE's log p(x)")
    parser.add_argument("--limit", type=int, default=1000, help="test words, the same for both")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    data = lb.open_data(options.data)
    results = [one(data, seed, options) for seed in options.seeds]
    common = {
        # No paper has this number (`tests/verification.py` reads which parts have one).
        "parts": [],
        "words": sum(map(len, (data.train, data.valid, data.test))),
        "test_words": data.test.fingerprint,
        "settings": {name: getattr(options, name) for name in ("epochs", "samples", "limit")},
        "versions": {"lowerbound": lb.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }
    record = [common | result for result in results]
    for result in results:
        bits = [result[name]["bits_per_character"] for name in ("vae", "language_model")]
        CONSOLE.print(
            f"seed {result['seed']}: VAE {bits[0]:.4f}, language model {bits[1]:.4f} bits per character "
            f"({result['excess_percent']:+.2f} %), {result['active_units']} of {result['latent_dim']} units active"
        )
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    if options.json is None:
        print(text)
    else:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)


if __name__ == "__main__":
    main()
