"""Lowerbound: train, judge, explore and ship variational autoencoders.

```python
import lowerbound as lb

data = lb.open_data("mnist-5k").binarised(lb.Binarise.DYNAMIC)
vae = lb.VAE(
    encoder=lb.heads.Conditional(lb.nn.MLP((1, 28, 28), (512,)), lb.heads.DiagonalNormal((512,), (32,))),
    decoder=lb.heads.Conditional(lb.nn.MLP((32,), (512,)), lb.heads.Bernoulli((512,), (1, 28, 28))),
    prior=lb.priors.StandardNormal(32),
)
lb.fit(vae, data, lb.ELBO(), lb.Training(epochs=20))
print(lb.evaluate(vae, data.test, num_samples=1000))
```

Names are imported when they are first used: `import lowerbound` costs nothing, and changes nothing global.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lowerbound import (
        data,
        disentanglement,
        distributions,
        evaluation,
        evidence,
        flows,
        heads,
        metrics,
        model,
        nn,
        objectives,
        optimisers,
        priors,
        recipes,
        scoring,
        tasks,
        training,
    )
    from lowerbound.checkpoint import load
    from lowerbound.data import ArraySource, Binarise, Data, Source, Support, open_data
    from lowerbound.errors import LowerboundError
    from lowerbound.evaluation import compare, evaluate
    from lowerbound.evidence import log_evidence
    from lowerbound.imputation import impute
    from lowerbound.model import VAE, ConditionalVAE, LadderVAE, Trace
    from lowerbound.objectives import ELBO, Reconstruction, Terms
    from lowerbound.recipes import Run
    from lowerbound.scoring import score
    from lowerbound.tasks import encode, interpolate, reconstruct, sample
    from lowerbound.training import Training, fit, train

# Where each public name lives. It repeats the imports above, which only type checkers and editors execute; a test holds
# the two against each other.
_HOME = {
    "ELBO": "objectives",
    "VAE": "model",
    "ArraySource": "data",
    "Binarise": "data",
    "ConditionalVAE": "model",
    "Data": "data",
    "LadderVAE": "model",
    "LowerboundError": "errors",
    "Reconstruction": "objectives",
    "Run": "recipes",
    "Source": "data",
    "Support": "data",
    "Terms": "objectives",
    "Trace": "model",
    "Training": "training",
    "compare": "evaluation",
    "encode": "tasks",
    "evaluate": "evaluation",
    "fit": "training",
    "impute": "imputation",
    "interpolate": "tasks",
    "load": "checkpoint",
    "log_evidence": "evidence",
    "open_data": "data",
    "reconstruct": "tasks",
    "sample": "tasks",
    "score": "scoring",
    "train": "training",
}
_MODULES = (
    "data",
    "disentanglement",
    "distributions",
    "evaluation",
    "evidence",
    "flows",
    "heads",
    "metrics",
    "model",
    "nn",
    "objectives",
    "optimisers",
    "priors",
    "recipes",
    "scoring",
    "tasks",
    "training",
)

__all__ = [
    "ELBO",
    "VAE",
    "ArraySource",
    "Binarise",
    "ConditionalVAE",
    "Data",
    "LadderVAE",
    "LowerboundError",
    "Reconstruction",
    "Run",
    "Source",
    "Support",
    "Terms",
    "Trace",
    "Training",
    "compare",
    "data",
    "disentanglement",
    "distributions",
    "encode",
    "evaluate",
    "evaluation",
    "evidence",
    "fit",
    "flows",
    "heads",
    "impute",
    "interpolate",
    "load",
    "log_evidence",
    "metrics",
    "model",
    "nn",
    "objectives",
    "open_data",
    "optimisers",
    "priors",
    "recipes",
    "reconstruct",
    "sample",
    "score",
    "scoring",
    "tasks",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"lowerbound.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"lowerbound.{name}")
    else:
        raise AttributeError(f"module 'lowerbound' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
