"""The IDX reader believes a file only as far as its bytes bear it out."""

import gzip
import math
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lowerbound.data.idx import parse_idx, read_idx_bytes
from lowerbound.errors import DataError

VALUES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)

# A busy machine is no reason to fail.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def header(*sizes, magic=b"\0\0\x08"):
    return magic + bytes([len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


PLAIN = header(*VALUES.shape) + VALUES.tobytes()
ZIPPED = gzip.compress(PLAIN, mtime=0)


def read(path, **bounds):
    return parse_idx(read_idx_bytes(path, **bounds), str(path))


def refusal(path, **bounds):
    """Returns the message with which the file is refused: one paragraph that names the file."""
    with pytest.raises(DataError) as caught:
        read(path, **bounds)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def write(tmp_path):
    def write(content, name="some-idx-ubyte"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", ["a-idx3-ubyte", "a-idx3-ubyte.gz"])
@pytest.mark.parametrize("content", [PLAIN, ZIPPED], ids=["plain", "zipped"])
def test_a_good_file_is_read_whatever_its_name_says(write, content, name):
    array = read(write(content, name))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, VALUES)


@pytest.mark.parametrize("shape", [(7,), (0,), (2, 3), (3, 0, 4), (2, 1, 3, 2)], ids=str)
def test_every_rank_is_read_with_the_shape_of_its_header(write, shape):
    values = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(read(write(gzip.compress(header(*shape) + values.tobytes()))), values)


def test_a_file_zipped_in_several_members_is_read_whole(write):
    content = gzip.compress(PLAIN[:20]) + gzip.compress(PLAIN[20:])
    np.testing.assert_array_equal(read(write(content)), VALUES)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 9, 10, 11, len(ZIPPED) // 2, len(ZIPPED) - 9, len(ZIPPED) - 8])
def test_a_truncated_zipped_file_is_refused(write, size):
    refusal(write(ZIPPED[:size]))


@pytest.mark.parametrize("missing", [1, 4, 5])
def test_a_zipped_file_without_its_whole_trailer_is_refused(write, missing):
    assert "truncated or damaged" in refusal(write(ZIPPED[:-missing]))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 7, 15, 16, len(PLAIN) - 1])
def test_a_truncated_plain_file_is_refused(write, size):
    refusal(write(PLAIN[:size]))


@pytest.mark.parametrize("position", [-8, -5], ids=["first byte", "last byte"])
def test_a_wrong_checksum_is_refused(write, position):
    content = bytearray(ZIPPED)
    content[position] ^= 1
    assert "CRC" in refusal(write(bytes(content)))


def test_a_wrong_length_in_the_trailer_is_refused(write):
    assert "length" in refusal(write(ZIPPED[:-4] + struct.pack("<I", len(PLAIN) + 1)))


def test_no_flipped_bit_of_a_zipped_file_yields_other_values(write):
    body = range(8 * 10, 8 * (len(ZIPPED) - 4), 3)  # between the gzip header and the length: deflate stream and CRC
    refused = 0
    for bit in body:
        content = bytearray(ZIPPED)
        content[bit // 8] ^= 1 << bit % 8
        path = write(bytes(content))
        try:
            array = read(path)
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(array, VALUES)
    assert refused >= len(body) - 8  # the stream's last byte is padded with bits that mean nothing


@pytest.mark.parametrize(
    "content",
    [ZIPPED + b"garbage", ZIPPED + gzip.compress(b"garbage"), PLAIN + b"g", gzip.compress(PLAIN + b"g")],
    ids=["after the stream", "a second stream", "after plain values", "after zipped values"],
)
def test_trailing_garbage_is_refused(write, content):
    refusal(write(content))


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html></html>",
        b"PK\x03\x04" + PLAIN[4:],
        header(5, 4, 3, magic=b"\x01\0\x08") + VALUES.tobytes(),
        header(5, 4, 3, magic=b"\0\x01\x08") + VALUES.tobytes(),
        b"\0\0\x08\0" + b"\x05",
        header(1, 5, 1, 4, 3) + VALUES.tobytes(),
        gzip.compress(ZIPPED),
    ],
    ids=["html", "zip", "first byte", "second byte", "rank 0", "rank 5", "zipped twice"],
)
def test_a_wrong_magic_number_is_refused_and_quoted(write, content):
    message = refusal(write(content))
    assert "magic number" in message
    begins = gzip.decompress(content)[:4] if content[:2] == b"\x1f\x8b" else content[:4]
    assert begins.hex(" ") in message


@pytest.mark.parametrize("kind", [0x00, 0x07, 0x09, 0x0B, 0x0C, 0x0D, 0x0E, 0xFF], ids=hex)
def test_values_that_are_not_uint8_are_refused(write, kind):
    content = header(5, 4, 3, magic=bytes([0, 0, kind])) + VALUES.tobytes()
    assert "uint8" in refusal(write(content))


@pytest.mark.parametrize(
    "sizes",
    [(6, 4, 3), (4, 4, 3), (5, 4, 2), (0, 4, 3), (2**32 - 1, 4, 3), (2**32 - 1,) * 3, (2**31, 2**31, 4)],
    ids=str,
)
def test_a_header_that_lies_is_refused_with_both_counts(write, sizes):
    message = refusal(write(gzip.compress(header(*sizes) + VALUES.tobytes())))
    assert f"{math.prod(sizes):,}" in message
    assert f"holds {VALUES.size:,}" in message


@pytest.mark.parametrize(
    "sizes", [(0, 2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1, 0), (2**32 - 1, 0, 2**32 - 1, 2)], ids=str
)
def test_an_empty_array_of_impossible_sizes_is_refused(write, sizes):
    refusal(write(header(*sizes)))


def test_an_empty_file_is_refused(write):
    assert "nothing" in refusal(write(b""))


def test_an_empty_zipped_file_is_refused(write):
    assert "nothing" in refusal(write(gzip.compress(b"")))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refusal(tmp_path / "absent.gz")
    refusal(tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["zipped", "plain"])
def test_the_bound_is_on_what_the_file_unpacks_to(write, pack):
    path = write(pack(PLAIN))
    np.testing.assert_array_equal(read(path, max_bytes=len(PLAIN)), VALUES)
    assert f"{len(PLAIN) - 1:,} bytes" in refusal(path, max_bytes=len(PLAIN) - 1)


def test_a_zipped_bomb_is_refused_before_it_is_unpacked(write):
    path = write(gzip.compress(header(1 << 24) + bytes(1 << 24), compresslevel=1))
    tracemalloc.start()
    try:
        message = refusal(path, max_bytes=10_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "10,000" in message
    assert peak < 1 << 20


@pytest.mark.parametrize("content", [PLAIN, ZIPPED], ids=["plain", "zipped"])
def test_reading_takes_memory_for_the_file_and_not_for_the_bound(write, content):
    path = write(content)
    tracemalloc.start()
    try:
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


positions = st.integers(0, len(PLAIN) - 1)
edits = st.one_of(
    st.tuples(st.just("set"), positions, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("insert"), positions, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("delete"), positions, st.integers(1, 8)),
    st.tuples(st.just("cut"), positions, st.none()),
)


def edited(content, changes):
    content = bytearray(content)
    for how, at, what in changes:
        match how:
            case "set":
                content[at : at + len(what)] = what
            case "insert":
                content[at:at] = what
            case "delete":
                del content[at : at + what]
            case "cut":
                del content[at:]
    return bytes(content)


def tried(function):
    """Returns the function's value and the message of the `DataError` that came in its place."""
    try:
        return function(), None
    except DataError as error:
        return None, str(error)


def parses_as_its_header_says_or_is_refused(content):
    array, message = tried(lambda: parse_idx(content, "mutant"))
    if message is not None:
        assert "mutant" in message
        assert "\n" not in message
        return
    rank = content[3]
    sizes = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    assert array.shape == sizes
    assert array.size == math.prod(sizes)
    assert array.tobytes() == content[4 + 4 * rank :]


@settings(patient, max_examples=300)
@given(st.lists(edits, max_size=4))
def test_a_mutated_file_parses_as_its_header_says_or_is_refused(changes):
    parses_as_its_header_says_or_is_refused(edited(PLAIN, changes))


sizes = st.one_of(st.integers(0, 4), st.sampled_from([2**16, 2**31, 2**32 - 1]))


@settings(patient, max_examples=300)
@given(st.lists(sizes, max_size=5), st.integers(0, 300), st.booleans())
@example([0, 2**32 - 1, 2**32 - 1], 0, True)
def test_any_header_is_borne_out_by_the_bytes_or_refused(claimed, surplus, honest):
    count = math.prod(claimed)
    body = bytes(count) if honest and count < 10_000 else bytes(surplus)
    parses_as_its_header_says_or_is_refused(header(*claimed) + body)


@settings(patient, max_examples=150)
@given(st.lists(edits, min_size=1, max_size=3))
def test_a_mutated_zipped_file_yields_the_same_values_or_is_refused(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "mutant.gz"
    content = edited(ZIPPED, changes)
    path.write_bytes(content)
    array, message = tried(lambda: read(path))
    if message is None:
        np.testing.assert_array_equal(array, VALUES)
    else:
        assert str(path) in message
        assert "\n" not in message
