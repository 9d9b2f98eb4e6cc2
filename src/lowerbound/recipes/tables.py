"""The recipe for tables."""

from __future__ import annotations

from dataclasses import replace

import lowerbound as lb
from lowerbound.errors import UsageError
from lowerbound.recipes.base import Run, swift

# Tables are of a few hundred rows or of millions: what a training takes is a number of updates.
_UPDATES, _FEWEST_EPOCHS = 4000, 10


def tabular(
    data: lb.Data,
    *,
    latent_dim: int = 10,
    width: int = 128,
    depth: int = 2,
    num_samples: int = 20,
    hide: float = 0.5,
    heavy_tails: bool = False,
    least_scale: float = 0.1,
    balance: str = "",
    weight_decay: float = 1e-3,
    average: float = 0.99,
    patience: int = 0,
    epochs: int = 0,
    batch_size: int = 64,
    lr: float = 1e-3,
) -> Run:
    """Tables with holes: mixed columns, an importance-weighted bound on the cells that are there.

    Mattei and Frellsen (2019). Column kinds are told by the file; --columns and --ignore overrule them.

    Args:
        data: The table.
        latent_dim: Components of z.
        width: Units of each hidden layer.
        depth: Hidden layers each way.
        num_samples: K, draws of z a row in one bound.
        hide: The share of rows in training of which cells are hidden from the encoder, so that it knows rows with
            holes.
        heavy_tails: Student's t for real columns instead of the normal density: for tables with outliers.
        least_scale: The least standard deviation of a cell given z, as a fraction of its column's.
        balance: A column of labels whose rare ones are repeated in training, in proportion to the root of their number;
            what is generated has the table's own shares again.
        weight_decay: Decoupled weight decay.
        average: Decay of the moving average of the weights; 0 for none.
        patience: Stop after so many epochs without a better validation loss, and keep the best; 0 to train through.
        epochs: Passes over the training rows; 0 for as many as make 4,000 updates, and at least 10.
        batch_size: Rows an update; of a smaller table, all of them.
        lr: The highest learning rate.
    """
    if not isinstance(data.view.reading, lb.data.Table):
        raise UsageError(
            f"The recipe tabular learns tables, .csv, .tsv or .parquet files; {data.name} is none. Use another recipe, "
            "mlp for example."
        )
    seen = data.balanced(balance) if balance else data
    assert isinstance(seen.view.reading, lb.data.Table)
    columns, widths = seen.view.reading.columns, (width,) * depth
    down = lb.nn.MLP((lb.nn.CellInput.width_of(columns),), widths)
    up = lb.nn.MLP((latent_dim,), widths)
    vae = lb.VAE(
        encoder=lb.heads.Conditional(
            lb.nn.CellInput(columns, down, hide), lb.heads.DiagonalNormal(down.out_shape, (latent_dim,))
        ),
        decoder=lb.heads.Conditional(up, lb.heads.Columns(up.out_shape, columns, heavy_tails, least_scale)),
        prior=lb.priors.StandardNormal(latent_dim),
    )
    batch = min(batch_size, len(seen.train))
    passes = epochs or max(_FEWEST_EPOCHS, _UPDATES // -(-len(seen.train) // max(1, batch)))
    objective = lb.objectives.IWAE(num_samples, lb.objectives.DoublyReparameterised())
    training = swift(passes, batch, lr, average, patience)
    return Run(seen, vae, objective, replace(training, weight_decay=weight_decay))
