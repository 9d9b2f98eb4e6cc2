"""How a composition is written down, and built again.

One convention carries everything: **a part keeps each constructor argument in an attribute of the same name.** Then a
part is described by its class and those attributes, a composition by the tree of its parts, and what was described can
be built again by calling the constructors: no pickle, no code of the run's author, no second configuration class.

What may be built is limited to classes of this package and the activations of `torch.nn`, and to small values, because
a description can come from a file that somebody else wrote.

Example:
    >>> import torch
    >>> from lowerbound.nn import MLP
    >>> tree = describe(MLP((4,), (8, 8), torch.nn.LeakyReLU(0.2)))
    >>> tree["class"], tree["widths"], tree["activation"]["negative_slope"]
    ('lowerbound.nn.MLP', [8, 8], 0.2)
    >>> build(tree).widths
    (8, 8)
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import math
import re
from typing import Any

import torch

from lowerbound.errors import CheckpointError

_MAX_DEPTH = 30
# A table of 1,000 columns takes some 40,000.
_MAX_NODES = 200_000
_MAX_INT = 1 << 40
_ACTIVATIONS = "torch.nn.modules.activation"

Value = dict[str, Any] | list[Any] | str | int | float | bool | None


def describe(part: object) -> Value:
    """Returns a JSON-ready description of a part, an argument of one, or a tuple of them.

    Raises:
        TypeError: A value cannot be described; our bug or an extension that breaks the convention above.
    """
    if isinstance(part, enum.StrEnum):
        return {"class": _public_name(type(part)), "value": part.value}
    if part is None or isinstance(part, bool | int | str):
        return part
    if isinstance(part, float):
        # JSON has no word for these two.
        return part if math.isfinite(part) else {"class": "float", "value": str(part)}
    if isinstance(part, tuple | list | torch.nn.ModuleList):
        return [describe(item) for item in part]
    cls = type(part)
    arguments: dict[str, Value] = {"class": _public_name(cls)}
    for name in _arguments(cls):
        if not hasattr(part, name):
            raise TypeError(
                f"{cls.__qualname__} takes an argument {name!r} but keeps no attribute of that name, so it cannot be "
                f"saved: write self.{name} = {name} in its constructor."
            )
        arguments[name] = describe(getattr(part, name))
    return arguments


def build(tree: Value) -> Any:
    """Builds what `describe` described.

    Raises:
        CheckpointError: The description names something else than parts of this package, or is not reasonable.
    """
    budget = [_MAX_NODES]
    return _build(tree, 0, budget)


def _build(tree: Value, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if depth > _MAX_DEPTH or budget[0] < 0:
        raise CheckpointError("The model's description is nested deeper or longer than any real one; refused.")
    if isinstance(tree, list):
        return tuple(_build(item, depth + 1, budget) for item in tree)
    if not isinstance(tree, dict):
        if isinstance(tree, int) and abs(tree) > _MAX_INT:
            raise CheckpointError(f"The model's description has a number {tree} that no part could use; refused.")
        return tree
    name = tree.get("class")
    if name == "float":
        return float(str(tree.get("value")))
    cls = _class(name)
    arguments = {k: _build(v, depth + 1, budget) for k, v in tree.items() if k != "class"}
    try:
        if issubclass(cls, enum.StrEnum):
            return cls(arguments["value"])
        return cls(**arguments)
    except CheckpointError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"The description of {name} does not fit it: {error}") from error


def _public_name(cls: type) -> str:
    """Returns the name under which a class is known outside: the module it lies in may be split without notice.

    Example:
        >>> from lowerbound.data.binarise import Binarise
        >>> _public_name(Binarise)
        'lowerbound.data.Binarise'
    """
    parts = cls.__module__.split(".")
    home = ".".join(parts[:2]) if parts[0] == "lowerbound" else cls.__module__
    return f"{home}.{cls.__qualname__}"


def _class(name: object) -> type:
    if not isinstance(name, str):
        raise CheckpointError("The model's description has a part without a class; it is damaged.")
    module, _, qualname = name.rpartition(".")
    # Importing a module runs it, so only those that hold parts are imported at all.
    own = re.fullmatch(r"lowerbound\.[a-z]\w*", module) and module != "lowerbound.cli"
    if (own or module == _ACTIVATIONS) and qualname.isidentifier():
        try:
            cls = getattr(importlib.import_module(module), qualname, None)
        except ImportError:
            cls = None
        if inspect.isclass(cls) and _is_part(cls) and _public_name(cls) == name:
            return cls
    raise CheckpointError(
        f"The model's description names {name!r}, which is no part of this version of lowerbound. A model with parts "
        "of your own is loaded by building it in Python and calling load_state_dict with its model.safetensors."
    )


def _is_part(cls: type) -> bool:
    # What is left out does things when it is built: opens files, say.
    return issubclass(cls, torch.nn.Module | enum.StrEnum) or dataclasses.is_dataclass(cls)


def _arguments(cls: type) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
