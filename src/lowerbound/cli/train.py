"""`train`: one command a recipe, whose options are the recipe's own settings and those of every training."""

from __future__ import annotations

import importlib
import inspect
import json as json_module
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import cyclopts
from cyclopts import Parameter
from docstring_parser import parse
from rich.markup import escape

from lowerbound.cli.options import precision_of
from lowerbound.cli.show import TrainingProgress, job, print_evaluation, print_json, print_note, stdout
from lowerbound.errors import DivergedError, UsageError, did_you_mean

if TYPE_CHECKING:
    from lowerbound.checkpoint import RunFolder
    from lowerbound.data import Reading
    from lowerbound.experiment import Experiment
    from lowerbound.recipes import Run

_PREEMPTED, _INTERRUPTED = 75, 130
# After training the model is measured: enough draws to see the gap, few enough to take seconds.
_CLOSING_SAMPLES, _CLOSING_EXAMPLES = 100, 1000
_EPILOGUE = """Examples:

  lowerbound train mlp --data mnist-5k --out runs/first
  lowerbound train tutorial --data mnist --epochs 2 --out runs/tutorial
  lowerbound train mlp --data mnist --out runs/wide --width 1024 --minutes 2
  lowerbound train mlp --data mnist --out runs/mine --config settings.toml
  lowerbound train conv --data photos --size 32 --out runs/photos
  lowerbound train tabular --data people.csv --ignore id --out runs/people
  lowerbound train text --data words.txt --out runs/words
  lowerbound train package.module:function --data x.npz --out runs/own

`lowerbound train RECIPE --help` explains every option of a recipe. Options can
also stand in a TOML file (latent-dim = 32), given as --config FILE.toml.
"""


@dataclass(frozen=True)
class Setting:
    """A keyword of a recipe.

    Attributes:
        name: Its name in Python.
        type: Its type.
        default: Its default.
        help: What the recipe's docstring says of it.
    """

    name: str
    type: Any
    default: Any
    help: str

    @property
    def shown_default(self) -> Any:
        """The default as people read it."""
        return getattr(self.default, "value", self.default)


@dataclass(frozen=True)
class Common:
    """The options of every training."""

    data: str
    out: Path
    minutes: float | None
    seed: int
    precision: str | None
    valid: int | None
    data_dir: Path | None
    columns: tuple[str, ...]
    ignore: tuple[str, ...]
    device: str
    resume: bool
    overwrite: bool
    save_every: float
    log: tuple[str, ...]
    json: bool
    size: int | None
    grey: bool
    colour: bool

    @property
    def reading(self) -> dict[str, Any]:
        """What was said of how the files are to be read: fields of a `lowerbound.data.Reading`."""
        if self.grey and self.colour:
            raise UsageError("--grey and --colour exclude one another: give one of them, or none.")
        told: dict[str, Any] = {"size": self.size, "colour": True if self.colour else False if self.grey else None}
        if self.columns:
            from lowerbound.data import Column

            told["columns"] = tuple(Column.parsed(part) for part in _parts(self.columns))
        if self.ignore:
            told["ignore"] = tuple(_parts(self.ignore))
        return {name: value for name, value in told.items() if value is not None}


_COMMON: dict[str, tuple[Any, Any, str]] = {
    "data": (
        str,
        inspect.Parameter.empty,
        "A name (lowerbound data), a path (.npy, .npz, .csv, .tsv, .parquet, .txt), or a folder of pictures.",
    ),
    "out": (Path, inspect.Parameter.empty, "The run folder; never overwritten without being asked."),
    "minutes": (float | None, None, "Train for so long instead of, or at most besides, --epochs."),
    "seed": (int, 0, "Determines initial weights, order and noise."),
    "precision": (str | None, None, "auto, fp32 or bf16; the recipe's own by default."),
    "valid": (int | None, None, "Validation examples, the last of the training examples; the source's own by default."),
    "data_dir": (Path | None, None, "A folder in which named data sets are looked for first."),
    "columns": (tuple[str, ...], (), "What columns of a table hold: age=count,city=categorical,size=s<m<l."),
    "ignore": (tuple[str, ...], (), "Columns of a table to leave out: id,name."),
    "device": (str, "auto", "auto, cpu, cuda or mps."),
    "resume": (bool, False, "Go on with the run in --out exactly where it was saved; begin it if there is none."),
    "overwrite": (bool, False, "Begin anew in a folder that is not empty."),
    "save_every": (float, 30.0, "Seconds between checkpoints."),
    "log": (tuple[str, ...], (), "Also report to a tracker: tensorboard."),
    "json": (bool, False, "Print one JSON document at the end, and nothing else, on stdout."),
    "size": (int | None, None, "Pictures: the side of the squares that they are cut and scaled to."),
    "grey": (bool, False, "Pictures: read them as grey ones."),
    "colour": (bool, False, "Pictures: read them in colour; by default if any of them can have colours."),
}
# Options of the common ones that say how files are read.
_READING = ("size", "grey", "colour", "columns", "ignore")


def _parts(texts: tuple[str, ...]) -> list[str]:
    """Returns what stands between the commas of options that take several values."""
    return [part for text in texts for part in text.split(",") if part]


def build_train_app() -> cyclopts.App:
    """Builds the `train` command with a command for each recipe."""
    from lowerbound.recipes import RECIPES

    app = cyclopts.App(
        name="train",
        help="Train a recipe on a data source, into a run folder.",
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
    )
    app["--help"].group = app["--version"].group = ()
    for name, recipe in RECIPES.items():
        app.command(_command(name, recipe), name=name)
    return app


def prepared(app: cyclopts.App, tokens: list[str]) -> list[str]:
    """Makes `train` know a recipe given as `module:function`, and puts options for those in a `--config` file."""
    if tokens[:1] != ["train"] or len(tokens) < 2:
        return tokens
    name = tokens[1]
    if ":" in name:
        app["train"].command(_command(name, _import_recipe(name)), name=name)
    return _with_config(name, tokens)


def _import_recipe(name: str) -> Callable[..., Run]:
    module, _, function = name.partition(":")
    sys.path.insert(0, "")  # as `python -m` does: a recipe may lie in the current folder
    try:
        recipe = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"The recipe {name!r} cannot be imported: {error}. Give it as module:function.") from error
    try:
        kinds = [p.kind for p in inspect.signature(recipe).parameters.values()]
    except (TypeError, ValueError):
        kinds = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not kinds or kinds[0] not in positional or any(k is not inspect.Parameter.KEYWORD_ONLY for k in kinds[1:]):
        raise UsageError(
            f"A recipe is a function of the data and of settings by keyword, def recipe(data, *, latent_dim: int = 8, "
            f"...), that returns a lowerbound.Run; {name} is not."
        )
    return cast("Callable[..., Run]", recipe)


def _with_config(name: str, tokens: list[str]) -> list[str]:
    """Takes `--config FILE.toml` out and puts its keys in as options, but for those that are given anyway."""
    config = config_of(tokens)
    if config is None:
        return tokens
    path, left = config
    given = {t.partition("=")[0] for t in left}
    known = {f"--{key.replace('_', '-')}" for key in (*_COMMON, *(s.name for s in recipe_settings(_recipe(name))))}
    added: list[str] = []
    for key, value in _read_config(path).items():
        option = f"--{key.replace('_', '-')}"
        if option not in known:
            near = did_you_mean(option, known)
            raise UsageError(f"{path} has the key {key!r}, which is no option of `lowerbound train {name}`. {near}")
        if option in given or value is False:
            continue
        values = value if isinstance(value, list) else [value]
        added += [option] if value is True else [t for v in values for t in (option, str(v))]
    return [*left[:2], *added, *left[2:]]


def config_of(tokens: list[str]) -> tuple[str, list[str]] | None:
    """Returns the file that `--config` names and the tokens without it, or None if there is no `--config`."""
    for place, token in enumerate(tokens):
        if token == "--config":
            return "".join(tokens[place + 1 : place + 2]), tokens[:place] + tokens[place + 2 :]
        if token.startswith("--config="):
            return token.partition("=")[2], tokens[:place] + tokens[place + 1 :]
    return None


def _recipe(name: str) -> Callable[..., Run]:
    from lowerbound.recipes import RECIPES

    if ":" in name:
        return _import_recipe(name)
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}. {did_you_mean(name, RECIPES)}")
    return RECIPES[name]


def _read_config(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        found = f"{path!r} cannot be read ({error.strerror})"
        raise UsageError(f"--config should name a TOML file with lines such as latent-dim = 32; {found}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no valid TOML: {error}.") from error


def recipe_settings(recipe: Callable[..., Run]) -> list[Setting]:
    """Returns the keywords of a recipe with their types, defaults and documentation."""
    documented = {p.arg_name: p.description or "" for p in parse(recipe.__doc__ or "").params}
    # Only the keywords' annotations are evaluated: that of the data would import torch.
    scope = getattr(recipe, "__globals__", {})
    return [
        Setting(
            name,
            eval(p.annotation, scope) if isinstance(p.annotation, str) else p.annotation,
            p.default,
            documented.get(name, ""),
        )
        for name, p in inspect.signature(recipe).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    ]


def summary_of(recipe: Callable[..., Run]) -> str:
    """Returns the first line of a recipe's docstring."""
    return (inspect.getdoc(recipe) or "").partition("\n")[0]


def _command(name: str, recipe: Callable[..., Run]) -> Callable[..., int]:
    settings = {s.name: s for s in recipe_settings(recipe)}

    def command(**given: Any) -> int:
        chosen = {k: v for k, v in given.items() if k in settings and v is not None}
        # A recipe's own setting hides an option of the same name.
        asked = {k: v for k, v in given.items() if k not in settings}
        common = Common(**{k: asked.get(k, default) for k, (_, default, _) in _COMMON.items()})
        return _train(name, recipe, chosen, common)

    def parameter(key: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
        # The options' own defaults are shown but not filled in, so that it is known what was really asked for.
        required = default is inspect.Parameter.empty
        option = f"--{key.replace('_', '-')}"
        shown = (
            text
            if required or default in (None, False, ())
            else f"{text} [default: {getattr(default, 'value', default)}]"
        )
        is_setting = key in settings
        group = "Recipe" if is_setting else "Data" if key in _READING else "Training"
        # A setting that is a tuple takes all the values that follow: --latent-dims 16 8 4.
        shown_as = Parameter(name=option, help=shown, show_default=False, group=group, consume_multiple=is_setting)
        accepted: Any = kind | None if is_setting else kind
        annotation: Any = Annotated[accepted, shown_as]
        value = None if is_setting else default
        return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotation)

    parameters = [parameter(k, *v) for k, v in _COMMON.items() if k not in settings]
    parameters += [parameter(s.name, s.type, s.default, s.help) for s in settings.values()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    command.__doc__ = "\n\n".join(part.strip() for part in (inspect.getdoc(recipe) or "").split("Args:")[:1])
    return command


def _train(name: str, recipe: Callable[..., Run], settings: dict[str, Any], common: Common) -> int:
    from lowerbound import spec
    from lowerbound.checkpoint import RunFolder
    from lowerbound.data import open_data
    from lowerbound.experiment import Experiment, prepare
    from lowerbound.trackers import open_trackers
    from lowerbound.training import resolve_device

    if common.resume and common.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite throws it away: give one of them.")
    device = resolve_device(common.device)
    folder = RunFolder(common.out)
    folder.check_free(may_exist=common.resume or common.overwrite)
    told = {**common.reading, **_unit_of(settings)}
    asked = {
        "recipe": name,
        "settings": {s.name: _plain(settings.get(s.name, s.default)) for s in recipe_settings(recipe)},
        "reading_options": {option: spec.describe(value) for option, value in told.items()},
    }
    found = _found_before(folder, asked, common)
    with job("reading") as report:
        source = open_data(
            common.data,
            data_dir=common.data_dir,
            num_valid=common.valid,
            reading=found,
            options=told if found is None else None,
            on_progress=report,
        )
    run = prepare(recipe, source, settings, _changes(common))
    with folder.locked():
        experiment = Experiment(
            run,
            folder,
            device=device,
            provenance={**asked, "command": ["lowerbound", *sys.argv[1:]]},
            trackers=open_trackers(common.log, common.out),
            save_every=common.save_every,
        )
        if common.resume and folder.exists():
            experiment.resume()
            print_note(f"Going on from update {experiment.state.step:,} of the run in {common.out}.")
        else:
            experiment.begin(overwrite=common.overwrite)
            if common.resume:
                print_note(f"There was no run in {common.out} yet: beginning it.")
        return _carry_out(experiment, common)


def _unit_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns what a setting says of how a file of text is to be read: what is none in UTF-8 opens as bytes alone."""
    from lowerbound.data import Unit
    from lowerbound.recipes.text import UnitName

    unit = settings.get("unit")
    return {"unit": Unit(unit.value)} if isinstance(unit, UnitName) and unit is not UnitName.AUTO else {}


def _found_before(folder: RunFolder, asked: dict[str, Any], common: Common) -> Reading | None:
    """Returns how the run that is gone on with found its files to be read; None where that must be found anew.

    It is what would be found again, if the same is asked of the same file; a file that has changed is noticed by what
    it is read as.
    """
    if not common.resume or not folder.exists():
        return None
    from lowerbound.experiment import view_of

    record = folder.record()
    before = {key: record.get(key) for key in asked}
    # As JSON has it, tuples are lists.
    if json_module.dumps(before) != json_module.dumps(asked):
        return None
    view = view_of(record)
    return view.reading if record["data"].get("source") == str(Path(common.data).resolve()) else None


def _changes(common: Common) -> dict[str, Any]:
    changes: dict[str, Any] = {"seed": common.seed}
    if common.minutes is not None:
        changes["minutes"] = common.minutes
    if common.precision is not None:
        changes["precision"] = precision_of(common.precision)
    return changes


def _carry_out(experiment: Experiment, common: Common) -> int:
    with _signals(experiment) as caught, TrainingProgress() as progress:
        try:
            for update in experiment.updates():
                progress.show(update)
        except DivergedError as error:
            raise DivergedError(f"{error} What was saved in {common.out} is intact.") from error
    if experiment.stopped:
        status = _INTERRUPTED if signal.SIGINT in caught else _PREEMPTED
        step = experiment.state.step
        print_note(f"Stopped and saved at update {step:,}. The same command with --resume goes on from there.")
        if common.json:
            print_json({"run": str(common.out), "finished": False, "step": step})
        return status
    _close(experiment, common)
    return 0


def _close(experiment: Experiment, common: Common) -> None:
    """Draws the figures, measures the model on validation (or training, if that is all there is), and says so.

    A single example has no standard error, so it is not measured on.
    """
    from lowerbound.evaluation import evaluate
    from lowerbound.experiment import notes_of, objective_of

    written = experiment.draw_figures()
    data, folder = experiment.run.data, experiment.folder
    sources = {"valid": data.valid, "train": data.train}
    split = next((name for name, source in sources.items() if source is not None and len(source) > 1), None)
    result = None
    if split is not None:
        saved = folder.read()
        result = evaluate(
            saved.vae,
            data.split(split),
            num_samples=_CLOSING_SAMPLES,
            limit=_CLOSING_EXAMPLES,
            gap=0,
            objective=objective_of(saved.record),
            notes=notes_of(saved.record),
        )
    seconds = experiment.state.seconds
    if common.json:
        print_json(
            {
                "run": str(common.out),
                "finished": True,
                "step": experiment.state.step,
                "seconds": round(seconds, 3),
                "metrics": folder.read_metrics()[-1],
                **({} if result is None else {split: result.to_json()}),
                "figures": [str(path) for path in written],
            }
        )
        return
    if split is None or result is None:
        print_note("Note: there are too few examples to measure the model: a standard error takes at least 2.")
    else:
        print_evaluation(f"{common.out}: {data.name}, {len(data.split(split)):,} {split} examples", result)
    stdout.print(f"Trained for {seconds:.0f} s, {experiment.state.step:,} updates.")
    stdout.print("Figures:", *(escape(str(path)) for path in written), sep="\n  ", soft_wrap=True)
    if len(data.test) > 1:
        stdout.print(
            f"Next, on the test split: lowerbound evaluate {escape(str(common.out))} --samples 1000", soft_wrap=True
        )


@contextmanager
def _signals(experiment: Experiment) -> Iterator[list[int]]:
    """Has SIGTERM, SIGUSR1 and the first Ctrl-C save and stop; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)
        experiment.stop = True

    numbers = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plain(value: Any) -> Any:
    """Returns a setting as JSON can hold it."""
    value = getattr(value, "value", value)
    try:
        json_module.dumps(value)
    except TypeError:
        return str(value)
    return value
