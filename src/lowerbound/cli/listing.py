"""`recipes` and `data`: what there is."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from lowerbound.cli.show import print_json, stdout
from lowerbound.cli.train import recipe_settings, summary_of


def recipes(*, json: bool = False) -> None:
    """List the recipes and their settings.

    Parameters
    ----------
    json
        Print one JSON document.
    """
    from lowerbound.recipes import RECIPES

    described = {
        name: {"about": summary_of(recipe), "settings": {s.name: s.shown_default for s in recipe_settings(recipe)}}
        for name, recipe in RECIPES.items()
    }
    if json:
        print_json(described)
        return
    table = Table("recipe", "what it is", "settings and their defaults", header_style="bold")
    for name, about in described.items():
        settings = "  ".join(f"--{k.replace('_', '-')} {v}" for k, v in about["settings"].items())  # type: ignore[attr-defined]
        table.add_row(name, str(about["about"]), settings)
    stdout.print(table)
    stdout.print(
        "lowerbound train RECIPE --help explains each setting. A recipe of your own is given as module:function."
    )


def data(
    *, data_dir: Annotated[str | None, Parameter(help="A folder to look in first.")] = None, json: bool = False
) -> None:
    """List the data sources that have names, and whether they are at hand.

    Parameters
    ----------
    json
        Print one JSON document.
    """
    from pathlib import Path

    from lowerbound.data import NAMED
    from lowerbound.data.named import at_hand

    folder = None if data_dir is None else Path(data_dir)
    listed = {name: {"about": named.about, "at_hand": at_hand(name, folder)} for name, named in NAMED.items()}
    if json:
        print_json(listed)
        return
    table = Table("source", "what it is", "at hand", header_style="bold")
    for name, entry in listed.items():
        table.add_row(name, str(entry["about"]), str(entry["at_hand"] or "no: it would be downloaded"))
    stdout.print(table)
    stdout.print(
        "A path works too: .npy or .npz (arrays x, y; or x_train, x_test, y_train, y_test), uint8 for pictures, int32 "
        "for counts, float for anything else (a .npy can be larger than memory); .csv, .tsv or .parquet, a table, with "
        "holes or without; .txt, a line of text an example; or a folder of PNG, JPEG and WebP pictures, with a "
        "sub-folder for each class if there are classes."
    )
