"""Lines of text as rows of token numbers, and back: what is read, what is refused, and in which words."""

import json

import pytest
import torch

import lowerbound as lb
from lowerbound import spec
from lowerbound.data import Support, Text, Unit
from lowerbound.errors import DataError, UsageError

WORDS = ["tea", "eat", "ate", "tee", "a", "stone", "onset", "notes", "seton", "toes", "Zoë", "naïve"]


def written(tmp_path, content, name="lines.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def all_lines(reading, path):
    learned, test = reading.open(path)
    return sorted(line for part in (learned, test) for line in reading.lines(part.examples(torch.arange(len(part))).x))


def opened(path, **settings):
    """What a file holds when it is read, and how it was read."""
    reading = Text(**settings).fitted(path)
    return all_lines(reading, path), reading


@pytest.mark.parametrize("unit", Unit)
def test_what_is_written_is_read_again(tmp_path, unit):
    path = written(tmp_path, "\n".join(f"{word} {word} er" for word in WORDS))
    reading = Text(unit).fitted(path)
    learned, test = reading.open(path)
    whole = torch.cat([part.examples(torch.arange(len(part))).x for part in (learned, test)])
    assert (learned.support, whole.dtype, whole.shape) == (Support.TOKENS, torch.float32, (12, reading.length))
    again = tmp_path / "again.txt"
    reading.write(whole, again)
    assert sorted(again.read_text().splitlines()) == sorted(path.read_text().splitlines())
    assert all_lines(reading, again) == all_lines(reading, path)


def test_the_vocabulary_is_the_most_frequent_first_and_the_row_fits_the_longest_line(tmp_path):
    lines, reading = opened(written(tmp_path, "bbb\nccc\naa\ndd dd\n"))
    assert reading.symbols == "dbca "
    assert reading.length == 6
    assert lines == ["aa", "bbb", "ccc", "dd dd"]
    lines, reading = opened(written(tmp_path, "bbb\nccc\naa\ndd dd\n"), most=2)
    assert reading.symbols == "db"
    assert lines == ["bbb", "dd\ufffddd", "\ufffd\ufffd", "\ufffd\ufffd\ufffd"]
    lines, reading = opened(written(tmp_path, "b a  a\nc\ta\nb d"), unit=Unit.WORDS, most=2)
    assert (reading.symbols, reading.vocabulary, reading.length) == ("a b", ["a", "b"], 4)
    assert lines == ["<unk> a", "b <unk>", "b a a"]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("unit", Unit)
def test_line_endings_marks_and_empty_lines_are_no_text(tmp_path, ending, mark, unit):
    content = mark + ending.join([b"", b"one", b"", b"", b"two", b"three", b""])
    lines, reading = opened(written(tmp_path, content), unit=unit)
    assert lines == ["one", "three", "two"]
    assert not set("\r\n\ufeff") & set(reading.symbols)


def test_lines_end_nowhere_else(tmp_path):
    lines, _ = opened(written(tmp_path, "a\x0bb\x0cc\x85d\u2028e\nf\ng"))
    assert lines == ["a\x0bb\x0cc\x85d\u2028e", "f", "g"]


def test_bytes_may_be_anything(tmp_path):
    content = bytes(range(256)).replace(b"\n", b"").replace(b"\r", b"")
    path = written(tmp_path, b"\n".join([content, b"\xff\x00\xe9", content[::-1]]))
    reading = Text(Unit.BYTES).fitted(path)
    assert reading.num_tokens == 256
    learned, test = reading.open(path)
    assert learned.values.dtype == torch.uint8
    reading.write(torch.cat([learned.values, test.values]), tmp_path / "again.txt")
    again = (tmp_path / "again.txt").read_bytes()
    assert sorted(again.split(b"\n")[:-1]) == sorted([content, b"\xff\x00\xe9", content[::-1]])


def test_a_line_of_ten_megabytes_is_cut_and_it_is_said(tmp_path):
    path = written(tmp_path, "x" * 10_000_000 + "\nabc\nde\nf\n")
    lines, reading = opened(path)
    assert reading.length == 256
    assert lines == ["abc", "de", "f", "x" * 256]
    data = lb.open_data(str(path))
    (note,) = data.test.notes
    assert note.startswith("1 of the file's 4 lines have 256 characters or more")
    assert data.train.notes == data.valid.notes == data.test.notes


def test_a_line_as_long_as_a_row_is_cut_and_one_shorter_is_not(tmp_path):
    path = written(tmp_path, "abc\nabcd\nabcde\n")
    reading = Text(longest=4).fitted(path)
    assert reading.rows(["abc", "abcd", "abcde"]).tolist() == [[2, 3, 4, 0], [2, 3, 4, 5], [2, 3, 4, 5]]
    assert reading.open(path)[0].notes[0].startswith("2 of the file's 3 lines")


def test_what_is_not_in_the_vocabulary_is_unknown_and_counted(tmp_path):
    reading = Text().fitted(written(tmp_path, "abc\ncab\nbca\n"))
    _, test = reading.open(written(tmp_path, "abd\nxya\nb\n", "new.txt"))
    assert test.notes[0].startswith("3 of the file's 7 characters are not in the vocabulary of 3")
    with pytest.raises(DataError, match="has none of the 3 characters that this run knows, such as 'a', 'b', 'c'"):
        reading.open(written(tmp_path, "xyz\nxy\nz\n", "other.txt"))


def test_many_symbols_take_two_bytes_and_many_blocks_are_read_as_one(tmp_path, monkeypatch):
    characters = [chr(0x4E00 + i) for i in range(1000)]
    path = written(tmp_path, "\n".join("".join(characters[i : i + 3]) for i in range(997)))
    lines, reading = opened(path)
    assert reading.open(path)[0].values.dtype == torch.int16
    assert len(lines) == 997
    monkeypatch.setattr("lowerbound.data.text._BLOCK", 50)
    assert opened(path) == (lines, reading)
    path.write_bytes(path.read_bytes() + b"\nbad \xff\n")
    with pytest.raises(DataError, match=r"no UTF-8 \(byte 0xff first\) in line 998\."):
        Text().fitted(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "but has none"),
        (b"\n\r\n\n", "but has none"),
        (b"\xef\xbb\xbf", "but has none"),
        (b"one line", "at least 3 lines of text"),
        (b"one\ntwo", "has 2"),
        (b"a\nb\nc\xe9\nd\n\xff\n", "no UTF-8 (byte 0xe9 first) in line 3, 5."),
        (b"\n".join([b"\xe9"] * 9), "in line 1, 2, 3, 4, 5 and more"),
        (b"a\nb\0c\nd\n", "has a NUL byte in line 2"),
        ("abc\ndef\nghi\n".encode("utf-16"), "begins as UTF-16"),
    ],
)
def test_what_is_no_text_is_refused_with_its_file_and_lines(tmp_path, content, words):
    path = written(tmp_path, content)
    with pytest.raises(DataError) as caught:
        lb.open_data(str(path))
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path):
    for path in (tmp_path / "nothing.txt", tmp_path):
        with pytest.raises(DataError, match="cannot be read as text"):
            Text().fitted(path)
    with pytest.raises(DataError, match="There is no file"):
        lb.open_data(str(tmp_path / "nothing.txt"))
    with pytest.raises(DataError, match="neither a known name nor the path"):
        lb.open_data(str(tmp_path / "nothing"))


@pytest.mark.parametrize("settings", [{"most": 0}, {"most": 1 << 15}, {"longest": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError, match="A vocabulary has 1 to"):
        Text(**settings)


@pytest.mark.parametrize("name", ["words.txt", "words"])
def test_a_file_of_words_is_opened_by_its_name_split_and_read_again_from_its_description(tmp_path, name):
    path = written(tmp_path, "\n".join(f"{word}{i}" for i in range(10) for word in WORDS[:10]), name)
    data = lb.open_data(str(path))
    assert [len(part) for part in (data.train, data.valid, data.test)] == [80, 10, 10]
    view = spec.build(json.loads(json.dumps(spec.describe(data.view))))
    assert view == data.view
    again = view.of(str(path))
    for split in ("train", "valid", "test"):
        assert again.split(split).fingerprint == data.split(split).fingerprint
    with pytest.raises(UsageError, match="reads a value in"):
        data.binarised(lb.Binarise.DYNAMIC)
    with pytest.raises(UsageError, match="8-bit"):
        data.dequantised()
