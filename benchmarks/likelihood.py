"""log p(x) of dynamically binarised MNIST for published networks: ours beside the papers'.

The network is that of Burda, Grosse and Salakhutdinov (2016, section 5): 784-200-200-50 and back, tanh, one layer of
50 latent components, the decoder's bias begun at the mean of the data. Theirs was trained for 3,280 epochs in batches
of 20 by Adam; here it is a fraction of the epochs, with SOAP (`lowerbound.optimisers`), a step that falls to zero, and
averaged weights; the two rows that cost most begin with the weights of IWAE-5. The optimiser, its step and the batch
were chosen with a validation split, on trainings of 20 epochs. The runs of the table then learn from all 60,000
training digits, and the test digits are looked at once, at the end, all runs on the same binarisation of them, so that
differences are paired.

    python benchmarks/likelihood.py                      everything: hours
    python benchmarks/likelihood.py vae iwae-5 --table   some; and with --table only the table, of what is trained

A run that is there is not trained again, and one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import lowerbound as lb
from lowerbound.checkpoint import RunFolder, write_file
from lowerbound.evaluation import Comparison
from lowerbound.experiment import Experiment, notes_of, prepare
from lowerbound.objectives import IWAE, DoublyReparameterised, Objective
from lowerbound.optimisers import SOAP
from lowerbound.recipes.base import started
from lowerbound.training import Linear

LATENT = 50
BURDA = "Burda, Grosse and Salakhutdinov (2016)"
TUCKER = "Tucker, Lawson, Gu and Maddison (2019), as re-run by github.com/nbip/IWAE"
CONSOLE = Console(stderr=True)


@dataclass(frozen=True)
class Track:
    """One row of the table.

    Attributes:
        objective: What is minimised.
        prior: p(z).
        begins_with: The track whose weights it begins with; None to begin anew.
        lr: The highest learning rate.
        clip: What the gradient's norm is cut to.
        epochs: Passes over the 60,000 digits.
        batch_size: Examples an update.
        parts: The parts of the package that the row is about.
        theirs: The published -log p(x) in nats, by 5,000 importance samples; None without one.
        paper: Its source.
    """

    objective: Callable[[], Objective]
    prior: Callable[[], lb.priors.Prior]
    epochs: int
    batch_size: int
    parts: tuple[str, ...]
    theirs: float | None = None
    paper: str = ""
    begins_with: str | None = None
    lr: float = 7e-3
    clip: float | None = None


def normal() -> lb.priors.Prior:
    return lb.priors.StandardNormal(LATENT)


def flow() -> lb.priors.Prior:
    return lb.priors.FlowPrior(LATENT, lb.flows.real_nvp(LATENT, 6, 128))


TRACKS = {
    "vae": Track(lb.ELBO, normal, 600, 512, ("lowerbound.objectives.ELBO", "lowerbound.model.VAE"), 86.76, BURDA),
    # With a larger step more of z is given up early, and stays so.
    "iwae-5": Track(lambda: IWAE(5), normal, 220, 256, ("lowerbound.objectives.IWAE",), 85.54, BURDA, lr=3e-3),
    "dreg-5": Track(
        lambda: IWAE(5, DoublyReparameterised()),
        normal,
        60,
        256,
        ("lowerbound.objectives.DoublyReparameterised",),
        84.90,
        TUCKER,
        begins_with="iwae-5",
        lr=2e-3,
        clip=100.0,
    ),
    "iwae-50": Track(
        lambda: IWAE(50), normal, 16, 128, ("lowerbound.objectives.IWAE",), 84.78, BURDA, begins_with="iwae-5", lr=4e-3
    ),
    "flow-prior": Track(lb.ELBO, flow, 300, 512, ("lowerbound.priors.FlowPrior",)),
}


def burda(data: lb.Data, track: Track) -> lb.Run:
    """The network of the paper, under a track's objective and prior."""
    seen = data.joined().binarised(lb.Binarise.DYNAMIC)
    down = lb.nn.MLP(data.event_shape, (200, 200), lb.nn.Tanh())
    up = lb.nn.MLP((LATENT,), (200, 200), lb.nn.Tanh())
    vae = lb.VAE(
        encoder=lb.heads.Conditional(down, lb.heads.DiagonalNormal(down.out_shape, (LATENT,))),
        decoder=lb.heads.Conditional(up, lb.heads.Bernoulli(up.out_shape, data.event_shape)),
        prior=track.prior(),
    )
    training = lb.Training(
        epochs=track.epochs,
        batch_size=track.batch_size,
        lr=track.lr,
        schedule=Linear(warmup=0.02),
        clip=track.clip,
        average=0.999,
        optimiser=SOAP(),
    )
    return lb.Run(seen, started(vae, seen), track.objective(), training)


def train(name: str, data: lb.Data, folders: dict[str, RunFolder], seed: int) -> None:
    """Trains one track, or goes on with it, after the track that it begins with; a finished one is left alone."""
    folder, track = folders[name], TRACKS[name]
    if folder.exists() and folder.read().finished:
        return
    run = prepare(lambda d: burda(d, track), data, {}, {"seed": seed})
    if track.begins_with is not None:
        train(track.begins_with, data, folders, seed)
        run.vae.load_state_dict(folders[track.begins_with].read().vae.state_dict())
    experiment = Experiment(run, folder, device=torch.device("cpu"), provenance={"recipe": f"likelihood {name}"})
    if folder.exists():
        experiment.resume()
    else:
        experiment.begin()
        # Before the first update, so that a run that is interrupted has one as well.
        note_spent(folder, 0.0)
    before, clock = seconds_spent(folder), time.process_time()
    with Progress(console=CONSOLE, disable=not CONSOLE.is_terminal) as bar:
        task = bar.add_task(name, total=1.0)
        for update in experiment.updates():
            bar.update(task, completed=update.step.progress)
            if update.logged and update.step.epoch_ends:
                note_spent(folder, before + time.process_time() - clock)
                if update.step.epoch % 10 == 0:
                    CONSOLE.print(f"{name}: epoch {update.step.epoch}, loss {update.logged['loss']:.2f}")


def note_spent(folder: RunFolder, seconds: float) -> None:
    """Notes the processor time of a run, without that of the run it began with."""
    write_file(folder.path / "spent.json", (json.dumps({"processor_seconds": seconds}) + "\n").encode())


def seconds_spent(folder: RunFolder) -> float:
    """The processor time of a run so far; what an interrupted epoch did is not in it."""
    return float(json.loads((folder.path / "spent.json").read_text())["processor_seconds"])


def processor_time(name: str, folders: dict[str, RunFolder]) -> float:
    """The processor time of a track and of those that it began with, seconds."""
    before = TRACKS[name].begins_with
    return seconds_spent(folders[name]) + (0.0 if before is None else processor_time(before, folders))


def table(names: list[str], folders: dict[str, RunFolder], data: lb.Data, samples: int) -> list[dict]:
    """Measures the trained tracks on the test digits, prints them beside the papers' and returns the records."""
    saved = {name: folders[name].read() for name in names}
    if unfinished := [name for name, run in saved.items() if not run.finished]:
        raise SystemExit(f"Not trained to the end yet: {', '.join(unfinished)}. Leave out --table, and they are.")
    test = data.binarised(lb.Binarise.DYNAMIC).test
    with Progress(console=CONSOLE, disable=not CONSOLE.is_terminal) as bar:
        task = bar.add_task("measuring", total=None)
        found = lb.compare(
            {name: run.vae for name, run in saved.items()},
            test,
            num_samples=samples,
            gap=0,
            notes={name: notes_of(run.record) for name, run in saved.items()},
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    records = [record(name, place, found, saved[name].record) for place, name in enumerate(names)]
    for name, row in zip(names, records, strict=True):
        row["processor_seconds"] = round(processor_time(name, folders))
        row["test_fingerprint"] = test.fingerprint
    show(names, records, samples)
    return records


def record(name: str, place: int, found: Comparison, trained: dict) -> dict:
    """What is kept of one row."""
    track, measured = TRACKS[name], found.evaluations[place]
    return {
        "parts": list(track.parts),
        "paper": track.paper,
        "quantity": f"-log p(x), nats, {name}",
        "theirs": track.theirs,
        "ours": -measured.log_px,
        "stderr": measured.log_px_stderr,
        "minus_elbo": -measured.elbo,
        "active_units": measured.active_units,
        "khat_bad": measured.khat_bad,
        "gain_over": found.names[0],
        "gain": found.log_px_difference[place],
        "gain_stderr": found.log_px_difference_stderr[place],
        "num_samples": measured.num_samples,
        "epochs": track.epochs,
        "begins_with": track.begins_with,
        "lr": track.lr,
        "clip": track.clip,
        "batch_size": track.batch_size,
        "seed": trained["training"]["seed"],
        "threads": trained["threads"],
        "notes": list(measured.notes),
    }


def show(names: list[str], records: list[dict], samples: int) -> None:
    """Prints the table."""
    said = ("network", "-ELBO", f"-log p(x), K={samples:,}", "paper", "ours - paper", f"gain over {names[0]}")
    shown = Table(*said, "active", "processor time")
    for name, row in zip(names, records, strict=True):
        theirs = row["theirs"]
        shown.add_row(
            name,
            f"{row['minus_elbo']:.2f}",
            f"{row['ours']:.2f} ± {row['stderr']:.2f}",
            "" if theirs is None else f"{theirs:.2f}",
            "" if theirs is None else f"{row['ours'] - theirs:+.2f}",
            f"{row['gain']:+.2f} ± {row['gain_stderr']:.2f}",
            str(row["active_units"]),
            f"{row['processor_seconds'] / 60:.0f} min",
        )
    Console().print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*TRACKS, []], help="rows of the table; all by default")
    parser.add_argument("--runs", type=Path, default=Path("runs/likelihood"), help="where the runs are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=5000, help="importance samples an example")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--train", action="store_true", help="measure nothing")
    parser.add_argument("--json", type=Path, help="also write the records here")
    options = parser.parse_args()
    names = options.names or list(TRACKS)
    folders = {name: RunFolder(options.runs / f"{name}-{options.seed}") for name in TRACKS}
    data = lb.open_data("mnist")
    if not options.table:
        for name in names:
            train(name, data, folders, options.seed)
    if not options.train:
        records = table(names, folders, data, options.samples)
        if options.json:
            options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
