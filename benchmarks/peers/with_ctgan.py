"""ctgan: its TVAE at its default settings, trained on a table, and as many rows made by it.

    with_ctgan.py TABLE.npz MADE.npz SEED

A table is `x`, float `[N, D]`, `y`, its classes, `[N]`, and `discrete`, which columns of x are of labels, bool `[D]`.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import torch
from ctgan import TVAE


def main() -> None:
    table, made, seed = sys.argv[1:]
    torch.set_num_threads(1)
    given = np.load(table)
    frame = pd.DataFrame({f"c{place}": column for place, column in enumerate(given["x"].T)})
    labels = [name for name, discrete in zip(frame.columns, given["discrete"], strict=True) if discrete]
    frame["class"] = given["y"]
    model = TVAE(enable_gpu=False)
    model.set_random_state(int(seed))
    model.fit(frame, discrete_columns=[*labels, "class"])
    rows = model.sample(len(frame))
    np.savez(made, x=rows.drop(columns="class").to_numpy(dtype=float), y=rows["class"].to_numpy(dtype=int))


if __name__ == "__main__":
    main()
