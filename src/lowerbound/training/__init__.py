"""Training: a generator of steps, and the loop is the caller's.

```python
for step in train(vae, data.train, ELBO(), Training(epochs=10)):
    if step.epoch_ends:
        print(step.epoch, step.terms.elbo.mean())
```

`train` makes one update after another and yields; logging, validation, saving and stopping are what the caller does in
the body of the loop. `fit` is that loop for those who want no more than a trained model.

**Determinism.** Torch's generator is seeded before every update by `(seed, update)`, and the order of an epoch follows
from `(seed, epoch)`. A training is therefore a function of its seed alone: drawing samples in the loop, or stopping and
going on in another process, changes nothing. On one CPU machine, with the same versions and number of threads, weights
agree bit for bit.

| file | what it does |
|---|---|
| `devices` | which device, which arithmetic, and its generators' seeds |
| `settings` | `Training`: the budget, the schedule and the rest |
| `state` | what changes in a training, and which weights are kept |
| `loop` | `train`, which makes one update after another; `fit` |
"""

from lowerbound.training.devices import (
    Precision,
    autocast,
    has_bf16,
    resolve_device,
    resolve_precision,
    seed_everything,
)
from lowerbound.training.loop import Step, check_run, end_epoch, fit, train, validate
from lowerbound.training.settings import Constant, Cosine, Linear, Schedule, Training
from lowerbound.training.state import Means, Selection, TrainState

__all__ = [
    "Constant",
    "Cosine",
    "Linear",
    "Means",
    "Precision",
    "Schedule",
    "Selection",
    "Step",
    "TrainState",
    "Training",
    "autocast",
    "check_run",
    "end_epoch",
    "fit",
    "has_bf16",
    "resolve_device",
    "resolve_precision",
    "seed_everything",
    "train",
    "validate",
]
