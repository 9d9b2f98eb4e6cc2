"""Tables as files: what columns are told to be, cells there and back, and everything a file can have wrong."""

import math
import warnings
from datetime import date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowerbound import spec
from lowerbound.data import Column, Data, Kind, Support, Table, View, epoch_order, open_data
from lowerbound.data.tables import balanced_index, mean_repeats
from lowerbound.data.tables.cells import MISSING
from lowerbound.data.tables.infer import MAX_LEVELS
from lowerbound.errors import DataError, UsageError

RNG = np.random.default_rng(0)
NAN = float("nan")


def written(path, header, *columns):
    lines = [header, *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def one(path, cells, name="v", **declared):
    """The column that a file of one column is told to be."""
    path.write_text("\n".join([name, *map(str, cells)]) + "\n")
    columns = (Column(name, **declared),) if declared else ()
    return Table(columns).fitted(path).columns[0]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "t.csv"


# kinds


KINDS = {
    "normal": (RNG.normal(size=60).round(3), Kind.REAL),
    "skewed": (np.exp(RNG.normal(size=60)).round(4), Kind.POSITIVE),
    "above 0, not skewed": (RNG.uniform(100, 101, 60).round(3), Kind.REAL),
    "counts": (RNG.integers(0, 90, 60), Kind.COUNT),
    "whole and negative": (RNG.integers(-40, 40, 60), Kind.REAL),
    "too large for counts": (RNG.integers(1 << 30, 1 << 31, 60), Kind.REAL),
    "0 and 1": ([0, 1] * 20, Kind.BINARY),
    "yes and no": (["yes", "no"] * 20, Kind.BINARY),
    "codes of classes": ([1, 2, 3] * 20, Kind.CATEGORICAL),
    "0 and 1 in several ways": ([0, "1.0", 1, "0"] * 10, Kind.COUNT),
    "codes in several ways": ([1, 2, 3, "1.0", "+2"] * 20, Kind.COUNT),
    "few rows": ([1, 2, 3], Kind.COUNT),
    "colours": (["red", "green", "blue"] * 20, Kind.CATEGORICAL),
    "days": ([f"2024-02-{d:02d}" for d in range(1, 29)], Kind.DATE),
    "moments": ([f"2024-02-{d:02d}T12:00:{d:02d}" for d in range(1, 29)], Kind.DATE),
    "constant number": ([7.5] * 20, Kind.REAL),
    "constant text": (["all"] * 20, Kind.CATEGORICAL),
    "numbers with holes": ([1.5, "NA", 2.5, "", "null", -3.25, "?", " nan "], Kind.REAL),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_a_column_is_told_by_its_cells(name, file):
    cells, kind = KINDS[name]
    assert one(file, cells).kind is kind


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_empty_lines_before_the_header_are_none_of_the_rows(end, mark, file):
    """In a table of one column an empty line is a row behind the header, and only there."""
    file.write_text(mark + end.join(["", "", "v", "1.5", "", "2.25", "4.5"]), newline="")
    table = Table().fitted(file)
    assert [(c.name, c.kind) for c in table.columns] == [("v", Kind.REAL)]
    assert table.read(file).raw["v"].to_pylist() == ["1.5", "", "2.25", "4.5"]
    file.write_text(mark + end.join(["", "v,w", "1.5,1", "", "2.25,2", "4.5,7"]), newline="")
    table = Table().fitted(file)
    assert table.read(file).raw["v"].to_pylist() == ["1.5", "2.25", "4.5"]


def test_the_user_has_the_last_word(file):
    assert one(file, [0, 1, 1, 0, 2], kind=Kind.REAL).kind is Kind.REAL
    assert one(file, [1, 2, 30], kind=Kind.CATEGORICAL).levels == ("1", "2", "30")
    ordinal = one(file, ["low", "high", "mid"], kind=Kind.ORDINAL, levels=("low", "mid", "high"))
    assert ordinal.levels == ("low", "mid", "high")
    assert ordinal.shares == pytest.approx((1 / 3,) * 3, rel=1e-5)


def test_the_units_are_those_of_the_cells(file):
    real = one(file, [1.5, 2.5, 4.25, "NA"], kind=Kind.REAL)
    values = np.array([1.5, 2.5, 4.25])
    assert (real.loc, real.scale, real.decimals) == (pytest.approx(values.mean()), pytest.approx(values.std()), 2)
    positive = one(file, [1.5, 2.5, 4.25], kind=Kind.POSITIVE)
    assert (positive.loc, positive.scale) == (pytest.approx(np.log(values).mean()), pytest.approx(np.log(values).std()))
    count = one(file, [0, 3, 8], kind=Kind.COUNT)
    assert count.loc == pytest.approx(np.log1p([0, 3, 8]).mean())
    assert one(file, [0.1] * 7).scale == 1.0


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("age=count", Column("age", Kind.COUNT)),
        ("a=b=real", Column("a=b", Kind.REAL)),
        ("size=s<m<l", Column("size", Kind.ORDINAL, levels=("s", "m", "l"))),
    ],
)
def test_a_column_can_be_said_in_one_word(text, column):
    assert Column.parsed(text) == column


@pytest.mark.parametrize("text", ["age", "age=", "=count", "age=cuont", "age=Count"])
def test_what_says_nothing_of_a_column_is_refused(text):
    with pytest.raises(UsageError, match="NAME=KIND"):
        Column.parsed(text)


@pytest.mark.parametrize("text", ["size=s<m<m<l", "size=s<m<", "size=<s", "size=NA<low<high", "size=s< m <m"])
def test_labels_that_no_cell_can_have_are_refused(text):
    """A model would give them a probability, and make cells of them."""
    with pytest.raises(UsageError, match="each of its labels once"):
        Column.parsed(text)


# there and back


def test_rows_come_back_as_they_were(tmp_path):
    n = 40
    path = written(
        tmp_path / "t.csv",
        "real,positive,count,binary,colour,day,whole",
        RNG.normal(size=n).round(3),
        np.exp(3 * RNG.normal(size=n)).round(3),
        RNG.integers(0, 90, n),
        RNG.choice(["yes", "no"], n),
        RNG.choice(["red", "green", ""], n),
        [f"20{y:02d}-03-{d:02d}" for y, d in zip(RNG.integers(0, 99, n), RNG.integers(1, 29, n), strict=True)],
        RNG.integers(-500, 500, n),
    )
    table = Table().fitted(path)
    sheet = table.read(path)
    assert sheet.x.dtype is torch.float32
    back = tmp_path / "back.csv"
    table.write(sheet.x, back)
    rows, again = (p.read_text().splitlines() for p in (path, back))
    assert rows[0] == again[0]
    for row, other in zip(rows[1:], again[1:], strict=True):
        for a, b in zip(row.split(","), other.split(","), strict=True):
            assert a == b or float(a) == pytest.approx(float(b), rel=1e-6)
    parquet = tmp_path / "back.parquet"
    table.write(sheet.x, parquet)
    types = {field.name: str(field.type) for field in pq.read_schema(parquet)}
    assert types == {
        "real": "double", "positive": "double", "count": "int64", "binary": "string", "colour": "string",
        "day": "date32[day]", "whole": "int64",
    }  # fmt: skip
    assert torch.equal(table.read(parquet).x.isnan(), sheet.x.isnan())
    torch.testing.assert_close(table.read(parquet).x, sheet.x, equal_nan=True, rtol=1e-3, atol=1e-3)


def test_a_parquet_file_keeps_its_types(tmp_path):
    n = 30
    arrays = {
        "small": pa.array(range(-5, n - 5), pa.int8()),
        "unsigned": pa.array(range(180, 180 + n), pa.uint8()),
        "half": pa.array(RNG.normal(size=n), pa.float32()),
        "flag": pa.array(RNG.random(n) < 0.5),
        "day": pa.array([date(2020, 1, 1 + i % 28) for i in range(n)], pa.date32()),
        "moment": pa.array((1_600_000_000_000_000 + RNG.integers(0, 10**15, n)), pa.timestamp("us")),
        "text": pa.array(RNG.choice(["a", "b", "c"], n)).dictionary_encode(),
        "exact": pa.array([i / 4 for i in range(n)]).cast(pa.decimal128(8, 2)),
    }
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(arrays), path)
    table = Table().fitted(path)
    assert [c.kind.value for c in table.columns] == [
        "real",
        "count",
        "real",
        "binary",
        "date",
        "date",
        "categorical",
        "real",
    ]
    x = table.read(path).x
    made = tmp_path / "made.parquet"
    table.write(3 * torch.nan_to_num(x), made)  # outside what the types can hold
    written_types = [str(field.type) for field in pq.read_schema(made)]
    assert written_types[:6] == [str(array.type) for array in list(arrays.values())[:6]]
    table.write(x, made)
    assert pq.read_table(made)["flag"].equals(pa.chunked_array([arrays["flag"]]))
    assert pq.read_table(made)["day"].equals(pa.chunked_array([arrays["day"]]))
    assert pq.read_table(made)["small"].equals(pa.chunked_array([arrays["small"]]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6), max_size=12))
def test_any_text_is_a_label_and_comes_back(tmp_path, cells):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"v": pa.array(["a", *cells], pa.string())}), path)
    table = Table((Column("v", Kind.CATEGORICAL),)).fitted(path)
    again = table.columns[0].decode(table.read(path).x[:, 0].numpy())
    assert again[0] == "a"
    for found, cell in zip(again[1:], cells, strict=True):
        # Without the spaces around it, whatever Unicode calls one.
        bare = None if cell is None else cell.strip()
        assert found == (None if bare in (None, *MISSING) else found)
        assert found is None or found in cell


def test_a_fitted_table_is_described_and_built_again(file):
    file.write_text("a,b,c\n" + "\n".join(f"{i / 3:.2f},{'xyz'[i % 3]},{i}" for i in range(40)))
    data = open_data(str(file))
    table = data.view.reading
    assert spec.build(spec.describe(table)) == table
    assert spec.build(spec.describe(data.view)) == data.view
    assert (data.support, data.event_shape) == (Support.TABLE, (3,))
    assert (len(data.train), len(data.valid), len(data.test)) == (32, 4, 4)
    again = View(reading=table).of(str(file))
    assert again.test.fingerprint == data.test.fingerprint


def test_other_files_mean_the_same_as_the_one_it_was_fitted_to(tmp_path):
    first = written(tmp_path / "a.csv", "v,c", [1, 2, 4, 9.5], ["x", "y", "z", "x"])
    other = written(tmp_path / "b.csv", "c,more,v", ["z", "x"], ["?", "q"], [2, ""])
    table = Table((Column("v", Kind.REAL),)).fitted(first)
    x = table.read(other).x
    assert x[0, 0] == pytest.approx((2 - 4.125) / np.std([1, 2, 4, 9.5]))
    assert x[1, 0].isnan()
    assert x[:, 1].tolist() == [2.0, 0.0]


def test_separators_and_quotes_are_found(tmp_path):
    table = Table((Column("a, b", Kind.REAL),))
    for mark, name in ((";", "t.csv"), ("\t", "t.tsv"), ("\t", "t.csv"), (",", "t.tsv")):
        path = tmp_path / name
        path.write_text(
            f'"a, b"{mark}c{mark}d\n' + "\n".join(f'{i}{mark}"x\n{i % 3}"{mark}"x{mark}y"' for i in range(9))
        )
        fitted = table.fitted(path)
        assert [c.name for c in fitted.columns] == ["a, b", "c", "d"]
        assert fitted.columns[1].levels == ("x\n0", "x\n1", "x\n2")
        assert fitted.columns[2].levels == (f"x{mark}y",)


def test_a_byte_order_mark_is_no_part_of_a_name(file):
    file.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2.5\r\n3,4.5\r\n7,1.5\r\n")
    table = Table().fitted(file)
    assert [c.name for c in table.columns] == ["a", "b"]
    assert len(table.read(file).x) == 3


# writing for spreadsheets


def test_text_that_a_spreadsheet_would_run_is_made_safe_and_numbers_are_not(tmp_path):
    formulas = ["=1+1", "+cmd", "-cmd", "@x", "plain"]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"v": pa.array(formulas * 3), "=w": pa.array([-1.5, 2.5, 0.0] * 5)}), path)
    table = Table().fitted(path)
    out = tmp_path / "out.csv"
    table.write(table.read(path).x, out)
    lines = out.read_text().splitlines()
    assert lines[0] == "v,'=w"
    assert lines[1:6] == ["'=1+1,-1.5", "'+cmd,2.5", "'-cmd,0.0", "'@x,-1.5", "plain,2.5"]


def test_what_was_there_is_written_as_it_was(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('id,v,note\na1,1.50,"=kept, too"\na2,,x\na3,3e0,"x"\na4,NA,y\n')
    table = Table((Column("v", Kind.REAL),), ignore=("id",)).fitted(path)
    sheet = table.read(path)
    out = tmp_path / "out.csv"
    sheet.write(torch.zeros_like(sheet.x), out)
    assert out.read_text() == 'id,v,note\na1,1.50,"=kept, too"\na2,2.25,x\na3,3e0,x\na4,2.25,y\n'


def test_a_filled_parquet_file_keeps_every_type_and_value(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({
        "n": pa.array([1, None, 3, 200], pa.uint8()),
        "when": pa.array([date(2020, 1, 2), None, date(2021, 1, 2), None]),
        "list": pa.array([[1], [2], None, []]), "c": pa.array(["a", "b", None, "a"]).dictionary_encode(),
    })  # fmt: skip
    pq.write_table(table, path)
    fitted = Table(ignore=("list",)).fitted(path)
    sheet = fitted.read(path)
    out = tmp_path / "out.parquet"
    sheet.write(torch.tensor([[1000.0, 0.0, 0.0]] * 4), out)
    filled = pq.read_table(out)
    assert filled.column_names == table.column_names
    assert filled["list"].equals(table["list"])
    assert filled["n"].to_pylist() == [1, 255, 3, 200]
    assert filled["when"].to_pylist()[::2] == [date(2020, 1, 2), date(2021, 1, 2)]
    assert str(filled["when"].type) == "date32[day]"
    assert None not in filled["c"].to_pylist()


# what is wrong


BROKEN = {
    "nothing": (b"", "is empty"),
    "only a mark": (b"\xef\xbb\xbf\n", "is empty"),
    "only a header": (b"a,b\n", "no rows"),
    "header without a line's end": (b"a,b", "no rows"),
    "ragged": (b"a,b\n1,2\n3\n4,5\n6,7,8\n9,1\n", "row 2 has 1; row 4 has 3"),
    "twice the same name": (b"a,b,a\n1,2,3\n", "'a' more than once"),
    "no name": (b"a,,c,\n1,2,3,4\n", "no name for column 2, 4"),
    "NUL": (b"a,b\n1,2\n3,\0\n", "line 3 has a NUL"),
    "Latin-1": ("a,b\nMünchen,1\n".encode("latin-1"), "line 2 has the byte 0xfc"),
    "an open quotation mark": (b'a,b\n1,"x\n2,y\n3,z\n', "opened and not closed"),
    "nothing in a column": (b"a,b\n1,\n2,NA\n3.5,\n", "'b' has no cell"),
    "text among numbers": (
        b"a\n" + b"\n".join(b"%d.5" % i for i in range(80)) + b"\nfive\nsix\n",
        "nearly every cell of the column 'a' is a number, but not at row 81: 'five'; row 82: 'six'",
    ),
    "a day that is none": (
        b"a,b\n" + b"\n".join(b"2024-01-%02d,1" % (i % 28 + 1) for i in range(40)) + b"\n2024-02-30,2\n",
        "nearly every cell of the column 'a' is an ISO date, but not at row 41: '2024-02-30'",
    ),
    "names": (b"a\n" + b"\n".join(b"person %d" % i for i in range(60)), "60 different values in 60 cells"),
    "decimal commas": (b"a;b\n" + b"\n".join(b"%d;%d,5" % (i, i % 3) for i in range(30)), "point before decimals"),
    "commas between thousands": (
        b"a\n" + b"\n".join(b'"1,%03d.50"' % i for i in range(30)), "row 1: '1,000.50'; row 2: '1,001.50'",
    ),
    "numbers beyond what has a mean": (b"a\n" + b"\n".join(b"%de307" % i for i in range(1, 18)), "row 1: '1e307'"),
    "an endless number": (b"a\n" + b"1.5\n" * 30 + b"1e999\n", "row 31: '1e999'"),
    "a huge cell": (b"a,b\n1,2\n3," + b"x" * (2 << 20) + b"\n", "the longest of 2,097,152"),
    "a long label": (b"a\n" + b"x\n" * 30 + b"y" * 1001 + b"\n", "at most 1,000 letters"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_file_is_said(name, file):
    content, message = BROKEN[name]
    file.write_bytes(content)
    with pytest.raises(DataError) as raised:
        open_data(str(file))
    assert message in str(raised.value)
    assert file.name in str(raised.value)


def test_large_numbers_have_units_and_what_has_none_is_refused(file, tmp_path):
    """Of equal numbers as large as these the mean is a little off, which must not become a large x."""
    assert one(file, [f"{10**30 + i}" for i in range(30)]).scale >= 1.0
    assert abs(Table().read(file).x).max() <= 2.0
    spread = one(file, [f"{2**53 + 100 * i}" for i in range(30)])
    assert spread.scale == pytest.approx(100 * np.arange(30).std())
    far = one(file, [f"{i % 2 * 2 - 1}e299" for i in range(30)] + ["3e299"])
    assert math.isfinite(far.loc)
    assert math.isfinite(far.scale)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"v": [1e301, 1.5, 2.5] * 4, "w": [math.inf, 1.5, 2.5] * 4}), path)
    for name in "vw":
        with pytest.raises(DataError, match=rf"'{name}' should hold finite numbers .* row 1: .*--ignore {name}"):
            Table(ignore=("vw".replace(name, ""),)).fitted(path)


def test_labels_with_commas_are_labels_where_that_is_said(file):
    file.write_text("a;b\n" + "\n".join(f"{i};{i % 3},5" for i in range(30)))
    columns = Table((Column("b", Kind.CATEGORICAL),)).fitted(file).columns
    assert columns[1].levels == ("0,5", "1,5", "2,5")


def test_five_offenders_are_named_and_the_rest_counted(file):
    file.write_text("a\n" + "\n".join(["x"] * 8 + ["1.5"] * 200))
    with pytest.raises(DataError, match=r"row 1: 'x'; .*row 5: 'x' and 3 more"):
        open_data(str(file))


@pytest.mark.parametrize(
    ("kind", "cells", "offender"),
    [
        (Kind.COUNT, [1, -2, 3], "row 2: '-2'"),
        (Kind.COUNT, [1, 2, 3.5], "row 3: '3.5'"),
        (Kind.COUNT, [1, 2, 1 << 25], "row 3: '33554432'"),
        (Kind.COUNT, [1, "9" * 30, 2], "row 2: '9999"),
        (Kind.POSITIVE, [0, 1, 2], "row 1: '0'"),
        (Kind.REAL, ["a", 1, 2], "row 1: 'a'"),
        (Kind.REAL, ["inf", 1, 2], "row 1: 'inf'"),
        (Kind.DATE, ["2024-01-01", "1.5", "2024-13-01"], "row 2: '1.5'; row 3: '2024-13-01'"),
        (Kind.BINARY, ["a", "b", "c"], "should be binary, but has 3"),
    ],
)
def test_a_declared_kind_is_held_to(kind, cells, offender, file):
    with pytest.raises(DataError) as raised:
        one(file, cells, kind=kind)
    assert offender in str(raised.value)
    assert "'v'" in str(raised.value)


TYPED = {
    "whole": pa.array([2023, None, 2024]), "float": pa.array([1.5, None, 2.5]),
    "yes or no": pa.array([True, None, False]), "day": pa.array([date(2024, 3, 1), None, date(2024, 3, 2)]),
    "moment": pa.array([datetime(2024, 3, 1), None, datetime(2024, 3, 2)], pa.timestamp("ns")),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
@pytest.mark.parametrize("kind", [Kind.REAL, Kind.COUNT, Kind.POSITIVE, Kind.DATE])
def test_a_type_that_is_not_of_the_declared_kind_is_refused_and_not_counted_from_1970(name, kind, tmp_path):
    path, is_date = tmp_path / "t.parquet", name in ("day", "moment")
    pq.write_table(pa.table({"v": TYPED[name]}), path)
    if is_date != (kind is Kind.DATE):
        with pytest.raises(DataError, match=f"'v' should hold {kind.value}, but not at row 1: .*; row 3: "):
            Table((Column("v", kind),)).fitted(path)
    elif (name, kind) not in [("float", Kind.COUNT), ("yes or no", Kind.POSITIVE)]:
        assert Table((Column("v", kind),)).read(path).x.isnan().flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", [Kind.REAL, Kind.DATE, None])
@pytest.mark.parametrize("cells", [pa.array([0, 10**12], pa.timestamp("s")), pa.array([0, 10**8], pa.date32())])
def test_a_date_in_no_year_is_refused(kind, cells, tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"v": cells}), path)
    with pytest.raises(DataError, match=r"row 2: 100000000\d* as "):
        Table((Column("v", kind),) if kind else ()).fitted(path)


def test_a_moment_whose_utc_is_in_no_year_is_no_date(file):
    lines = [f"2024-03-{day:02d}T12:00" for day in range(1, 29)]
    file.write_text("\n".join(["v", *lines, "0001-01-01T00:00+05:00"]))
    with pytest.raises(DataError, match="row 29: '0001-01-01T00:00"):
        Table().fitted(file)


def test_too_few_rows_and_too_many_columns_and_labels(file):
    file.write_text("a\n1.5\n")
    assert len(Table().read(file).x) == 1
    with pytest.raises(DataError, match="fewest"):
        open_data(str(file))
    file.write_text(",".join(f"c{i}" for i in range(1001)) + "\n" + ",".join(["1"] * 1001))
    with pytest.raises(DataError, match="1,001 columns"):
        open_data(str(file))
    with pytest.raises(DataError, match="at most 1,000 labels"):
        one(file, [f"l{i}" for i in range(MAX_LEVELS + 1)], kind=Kind.CATEGORICAL)


def test_nested_columns_are_refused_unless_ignored(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": pa.array([1.5, 2.5, 3.5]), "b": pa.array([[1], [2], [3]])}), path)
    with pytest.raises(DataError, match=r"not b \(list"):
        open_data(str(path))
    assert open_data(str(path), reading=Table(ignore=("b",))).event_shape == (1,)
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match="cannot be read as a Parquet"):
        open_data(str(path))


def test_columns_that_are_not_there(tmp_path):
    path = written(tmp_path / "a.csv", "age,b", [1, 2, 3], [1.5, 2.5, 3.5])
    with pytest.raises(UsageError, match=r"no column 'agee'\. Did you mean age"):
        Table(ignore=("agee",)).fitted(path)
    with pytest.raises(UsageError, match="twice"):
        Table((Column("age", Kind.REAL),), ("age",))
    with pytest.raises(UsageError, match="leave at least one"):
        Table(ignore=("age", "b")).fitted(path)
    other = written(tmp_path / "b.csv", "b,c", [1.5], [2])
    with pytest.raises(DataError, match="age is not there"):
        Table().fitted(path).read(other)
    with pytest.raises(DataError, match="no file"):
        open_data(str(tmp_path / "none.csv"))


def test_new_cells_that_a_column_cannot_hold_are_missing_and_named(tmp_path):
    first = written(tmp_path / "a.csv", "c,n", ["x", "y", "z"] * 10, range(30))
    other = written(tmp_path / "b.csv", "c,n", ["x", "unseen", "other"], [-4, 2, 3])
    table = Table().fitted(first)
    sheet = table.read(other)
    assert sheet.x.isnan().tolist() == [[False, True], [True, False], [True, False]]
    assert not sheet.holes.any()
    assert len(sheet.notes) == 1
    assert "column 'c': row 2: 'unseen'; row 3: 'other'" in sheet.notes[0]
    assert "column 'n': row 1: '-4'" in sheet.notes[0]
    with pytest.warns(UserWarning, match="taken as missing"):
        table.open(other)
    wrong = written(tmp_path / "c.csv", "c,n", ["x"], ["seven"])
    with pytest.raises(DataError, match=r"'n' should hold count, but not at row 1: 'seven'"):
        table.read(wrong)


def test_a_row_without_any_cell_is_a_row(file):
    file.write_text("a,b\n1.5,x\n,\n2.5,y\n\n,z\n")
    x = Table().read(file).x
    assert x.isnan().tolist() == [[False, False], [True, True], [False, False], [True, False]]


# rare classes


def test_rare_classes_are_repeated_by_the_root_of_their_number(tmp_path):
    classes = ["common"] * 90 + ["rare"] * 10
    path = written(tmp_path / "t.csv", "v,c", RNG.normal(size=100).round(3), classes)
    data = open_data(str(path))
    balanced = data.balanced("c")
    natural = data.train.examples(torch.arange(len(data.train))).x[:, 1]
    seen = balanced.train.examples(torch.arange(len(balanced.train))).x[:, 1]
    common, rare = (int((natural == k).sum()) for k in (0, 1))
    assert int((seen == 0).sum()) == common
    assert int((seen == 1).sum()) == round(rare * math.sqrt(common / rare))
    index = balanced_index(data.train, 1)
    assert torch.equal(index.unique(), torch.arange(len(data.train)))
    # Which rows are repeated follows from the table alone, and so does the order of an epoch.
    assert torch.equal(index, balanced_index(data.train, 1))
    assert torch.equal(*(epoch_order(len(balanced.train), 3, 5) for _ in range(2)))
    again = spec.build(spec.describe(balanced.view)).of(str(path))
    assert isinstance(again, Data)
    assert again.train.fingerprint == balanced.train.fingerprint
    # What generation has to undo is kept with the column.
    repeats = balanced.view.reading.columns[1].repeats
    assert repeats == pytest.approx((1.0, int((seen == 1).sum()) / rare))
    assert again.view == balanced.view
    assert again.test.fingerprint == data.test.fingerprint
    for wrong in ("v", "w"):
        with pytest.raises(UsageError, match="column of labels"):
            data.balanced(wrong)
    with pytest.raises(UsageError, match="once"):
        balanced.balanced("c")


def test_rows_whose_class_is_missing_are_there_once(file):
    file.write_text("v,c\n" + "\n".join(["1.5,a"] * 9 + ["2.5,b"] + ["3.5,"] * 5))
    source = Table().whole(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = balanced_index(source, 1)
    assert torch.bincount(index).tolist() == [1] * 9 + [3] + [1] * 5
    # Of labels in the order of their numbers, one of which no row has.
    assert mean_repeats(source, 1, index, 3) == (1.0, 3.0, 1.0)
