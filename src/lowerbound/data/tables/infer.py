"""What a column holds, told by its cells.

In this order:

* what Parquet says is a Boolean is binary, a date or a time stamp a date;
* text of which every cell is a number is taken as numbers, and text of which every cell is an ISO date as dates;
  where nearly every cell is one, or they are numbers with decimal commas, it is refused;
* other text is binary with two labels, and categorical with more, up to half as many as there are cells and 1,000;
* whole numbers are binary where there are two of them, categorical where there are at most 10 and each occurs five
  times in the mean (codes of classes; each is written in one way), and counts where none is negative or above 2^24;
* other numbers are positive where all are, they are skewed, and their logarithms are less so; else real.

Where that is not what they are, say it: `Table(columns=...)`, `--columns`.
"""

from __future__ import annotations

from lowerbound.data.tables.cells import LARGEST
from lowerbound.data.tables.columns import Column, Kind
from lowerbound.data.tables.tally import FEW_LEVELS, Moments, Numbers, Tally, Wrong, short
from lowerbound.errors import DataError

MAX_LEVELS = 1000
_MAX_LABEL = 1000
_EACH = 5
# Text that is this often a number was meant as one, and the rest are mistakes.
_MOSTLY = 0.9
_SKEWED = 1.0
_ALWAYS_ALLOWED = 20
_STORED = frozenset(
    {"bool", "float", "double", "date32[day]"}
    | {f"timestamp[{unit}]" for unit in ("s", "ms", "us", "ns")}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def infer(tally: Tally, where: str) -> Column:
    """Returns a column with everything decided.

    Args:
        tally: What was counted of its cells.
        where: The file's name, for messages.

    Raises:
        DataError: The cells are of no kind, or not of the declared one.
    """
    name, declared = tally.name, tally.declared
    if not tally.there:
        raise DataError(f"{where}: the column {name!r} has no cell that is not missing. Leave it out: --ignore {name}.")
    kind = _kind(tally, where) if declared is None else declared.kind
    found = _with_levels(tally, kind, where) if kind.has_levels else _with_units(tally, kind)
    if tally.refused.count:
        raise refusal(found, tally.refused, where)
    return found


def refusal(column: Column, wrong: Wrong, where: str, *, is_new: bool = False) -> DataError:
    """Returns what is said of cells that a column cannot take; in a new file, what it holds is decided."""
    levels = f" ({', '.join(column.levels[:10])}{', ...' if column.num_levels > 10 else ''})"
    what = column.kind.value + (levels if column.levels else "")
    advice = (
        "Mend the cells, or leave them empty where they are not known"
        if is_new
        else f"Mend the cells, or say what the column is: --columns {column.name}=KIND, or --ignore {column.name}"
    )
    return DataError(f"{where}: the column {column.name!r} should hold {what}, but not at {wrong}. {advice}.")


def _kind(tally: Tally, where: str) -> Kind:
    if tally.is_boolean:
        return Kind.BINARY
    if tally.is_temporal:
        if tally.undated.count:
            raise refusal(Column(tally.name, Kind.DATE), tally.undated, where)
        return Kind.DATE
    if not tally.bad.count:
        return _kind_of_numbers(tally.numbers, len(tally.labels.counts))
    name = tally.name
    if not tally.is_text:
        raise DataError(
            f"{where}: the column {name!r} should hold finite numbers of up to {LARGEST:g}, but not at {tally.bad}. "
            f"Mend those cells (null where they are not known), or leave the column out: --ignore {name}."
        )
    if not tally.undated.count:
        return Kind.DATE
    for what, wrong in (("a number", tally.bad), ("an ISO date", tally.undated)):
        if wrong.count < (1 - _MOSTLY) * tally.there:
            raise DataError(
                f"{where}: nearly every cell of the column {name!r} is {what}, but not at {wrong}. Mend those "
                f"cells (leave them empty if they are not known), or say that they are labels: --columns "
                f"{name}=categorical."
            )
    if tally.bad.count - tally.nearly.count < (1 - _MOSTLY) * tally.there:
        raise DataError(
            f"{where}: the column {name!r} has numbers that are not written as they are read here, at "
            f"{tally.nearly}. Write a point before decimals, nothing between thousands, and nothing beyond "
            f"{LARGEST:g}; or say that they are labels: --columns {name}=categorical."
        )
    if len(tally.labels.counts) > max(_ALWAYS_ALLOWED, min(MAX_LEVELS, tally.there // 2)):
        raise DataError(
            f"{where}: the column {name!r} holds text, with {tally.labels} different values in {tally.there:,} "
            f"cells: too many for categories. Leave it out (--ignore {name}), or say that it is one all the same "
            f"(--columns {name}=categorical)."
        )
    return Kind.BINARY if len(tally.labels.counts) == 2 else Kind.CATEGORICAL


def _kind_of_numbers(numbers: Numbers, spellings: int) -> Kind:
    if numbers.whole:
        # Where one is written in two ways, 1 and 1.0, they are no labels.
        are_codes = spellings <= numbers.distinct
        if are_codes and numbers.distinct == 2:
            return Kind.BINARY
        if are_codes and 2 < numbers.distinct <= min(FEW_LEVELS, numbers.plain.count / _EACH):
            return Kind.CATEGORICAL
        if numbers.are_counts:
            return Kind.COUNT
    if numbers.low > 0 and numbers.distinct > 2:
        skew = numbers.plain.skewness
        if skew > _SKEWED and abs(numbers.logs.skewness) < skew:
            return Kind.POSITIVE
    return Kind.REAL


def _with_units(tally: Tally, kind: Kind) -> Column:
    moments = tally.values if tally.declared is not None else _moments_of(tally, kind)
    # What is left of a constant column is rounding, which of large numbers is not small.
    scale = moments.std if moments.std > 1e-7 * max(abs(moments.mean), 1e-30) else max(1.0, moments.std)
    return Column(tally.name, kind, moments.mean, scale, decimals=_decimals(tally, kind), storage=_storage(tally))


def _moments_of(tally: Tally, kind: Kind) -> Moments:
    if kind is Kind.DATE:
        return tally.days
    return {Kind.POSITIVE: tally.numbers.logs, Kind.COUNT: tally.numbers.counts}.get(kind, tally.numbers.plain)


def _decimals(tally: Tally, kind: Kind) -> int:
    if kind is Kind.COUNT:
        return 0
    if kind is Kind.DATE:
        return -1 if tally.timed else 0
    return tally.digits


def _with_levels(tally: Tally, kind: Kind, where: str) -> Column:
    name, counts = tally.name, tally.labels.counts
    given = tally.declared.levels if tally.declared is not None else ()
    levels = given or tuple(_in_order(list(counts)))
    if kind is Kind.BINARY and len(levels) > 2:
        raise DataError(
            f"{where}: the column {name!r} should be binary, but has {len(levels)} different labels: "
            f"{', '.join(short(level) for level in levels[:5])}, ... Call it categorical: --columns "
            f"{name}=categorical."
        )
    if len(levels) > MAX_LEVELS or max(map(len, levels)) > _MAX_LABEL:
        found = f"{len(levels):,}" if given else str(tally.labels)
        raise DataError(
            f"{where}: the column {name!r} can have at most {MAX_LEVELS:,} labels of at most {_MAX_LABEL:,} letters; "
            f"it has {found}, the longest of {max(map(len, levels)):,}. Leave it out: --ignore {name}."
        )
    each = [counts.get(level, 0) for level in levels]
    shares = tuple(float(f"{count / max(sum(each), 1):.6g}") for count in each)
    return Column(name, kind, levels=levels, shares=shares, storage=_storage(tally))


def _in_order(levels: list[str]) -> list[str]:
    """Returns labels sorted: numbers by size, text by its letters."""
    try:
        return sorted(levels, key=lambda level: (float(level), level))
    except ValueError:
        return sorted(levels)


def _storage(tally: Tally) -> str:
    # Text is how a text file has everything, so it says nothing.
    return str(tally.type) if str(tally.type) in _STORED and not tally.is_text else ""
