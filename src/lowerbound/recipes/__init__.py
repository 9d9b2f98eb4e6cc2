"""Recipes: named functions that put together everything a training needs.

A recipe takes a data set and settings, each with a default, and returns a `Run`. It is written with the same public
names that a user has, so a recipe of your own looks the same; the command line takes it as `module:function`:

```python
import lowerbound as lb

def mine(data: "lb.Data", *, latent_dim: int = 8, epochs: int = 5, batch_size: int = 128, lr: float = 1e-3) -> lb.Run:
    ...
```

Every recipe has the settings `epochs`, `batch_size` and `lr`.
"""

# Annotations are not evaluated, and lb is lazy: `lowerbound train --help` reads this without importing torch.
from __future__ import annotations

from collections.abc import Callable

from lowerbound.recipes.base import BinariseName, LikelihoodName, Run
from lowerbound.recipes.basic import autoencoder, conv, mlp, tutorial
from lowerbound.recipes.codes import fsq, vq
from lowerbound.recipes.family import (
    beta,
    dreg,
    flow_prior,
    full_covariance,
    iaf,
    iwae,
    logistic,
    sigma,
    tc,
    vamp,
    wae,
)
from lowerbound.recipes.labelled import conditional
from lowerbound.recipes.layered import ladder
from lowerbound.recipes.recovered import camera
from lowerbound.recipes.tables import tabular
from lowerbound.recipes.text import UnitName, text
from lowerbound.recipes.timed import fast, gpu_25, nll_10, nll_60

_FUNCTIONS = (
    tutorial,
    autoencoder,
    mlp,
    conv,
    conditional,
    beta,
    tc,
    wae,
    iwae,
    dreg,
    full_covariance,
    iaf,
    vamp,
    flow_prior,
    sigma,
    logistic,
    ladder,
    vq,
    fsq,
    tabular,
    text,
    camera,
    fast,
    nll_10,
    nll_60,
    gpu_25,
)
RECIPES: dict[str, Callable[..., Run]] = {f.__name__.replace("_", "-"): f for f in _FUNCTIONS}

__all__ = ["RECIPES", "BinariseName", "LikelihoodName", "Run", "UnitName", *(f.__name__ for f in _FUNCTIONS)]
