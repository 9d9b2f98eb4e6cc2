"""Folders of pictures: what every kind of picture becomes, what is refused, and that nothing is decoded twice."""

import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from command import assert_refused, call, succeed
from PIL import Image, ImageDraw

from lowerbound import spec
from lowerbound.data import ArraySource, Pictures, StoredSource, Support, cache, decoding, open_data, pictures, stored
from lowerbound.data.decoding import UnreadableError, decode, look
from lowerbound.data.source import Subset
from lowerbound.errors import CheckpointError, DataError, ResourceError, UsageError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LOWERBOUND_CACHE", str(tmp_path / "cache"))


def drawn(seed, size=(40, 30)):
    """A shape in a colour on a background."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randint(60, 200) for _ in range(3)))
    x, y, r = rng.randint(10, size[0] - 10), rng.randint(10, size[1] - 10), rng.randint(4, 9)
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.randint(0, 255) for _ in range(3)))
    return image


def folder(path, count=20, *, classes=(), suffixes=(".png", ".jpg", ".webp")):
    """A folder of pictures, in sub-folders where there are classes."""
    for i in range(count):
        within = path / classes[i % len(classes)] if classes else path
        within.mkdir(parents=True, exist_ok=True)
        drawn(i).save(within / f"{i:03}{suffixes[i % len(suffixes)]}")
    return path


def saved(path, image, **options):
    image.save(path, **options)
    return path


def refusal(path, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        open_data(str(path), options=options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def everything(data):
    return torch.cat([data.split(name).examples(torch.arange(len(data.split(name)))).x for name in ("train", "test")])


# one picture


RED, HALF_RED = (200, 30, 40), (200, 30, 40, 128)
# Half red over white, as Pillow rounds it.
ON_WHITE = tuple(round(c * 128 / 255 + 255 * 127 / 255) for c in RED)
LUMA = round((200 * 299 + 30 * 587 + 40 * 114) / 1000)


def flat(mode, colour):
    return Image.new(mode, (6, 4), colour)


def palette(transparent):
    image = flat("RGB", RED).quantize(4)
    if transparent:
        image.info["transparency"] = image.getpixel((0, 0))
    return image


MODES = {
    "1.png": (flat("1", 1), (255,) * 3, False),
    "1-black.png": (flat("1", 0), (0,) * 3, False),
    "L.png": (flat("L", 77), (77,) * 3, False),
    "L.jpg": (flat("L", 77), (77,) * 3, False),
    "LA.png": (flat("LA", (0, 51)), (204,) * 3, False),
    "I;16.png": (Image.fromarray(np.full((4, 6), 257 * 77 + 100, np.uint16)), (77,) * 3, False),
    "P.png": (palette(False), RED, True),
    "P-transparent.png": (palette(True), (255,) * 3, True),
    "RGB.png": (flat("RGB", RED), RED, True),
    "RGB.webp": (flat("RGB", RED), RED, True),
    "RGBA.png": (flat("RGBA", HALF_RED), ON_WHITE, True),
    "RGBA-clear.png": (flat("RGBA", (*RED, 0)), (255,) * 3, True),
    "RGBA.webp": (flat("RGBA", HALF_RED), ON_WHITE, True),
    "CMYK.jpg": (flat("CMYK", (0, 0, 0, 0)), (255,) * 3, True),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_eight_bits_of_the_right_colour(name, tmp_path):
    image, expected, colour = MODES[name]
    path = saved(tmp_path / name, image, **({"lossless": True} if name.endswith("webp") else {}))
    assert look(path) == decoding.Header(4, 6, colour)
    made = decode(path, 4, 6, True)
    assert made.dtype == np.uint8
    assert made.shape == (3, 4, 6)
    assert np.abs(made.astype(int) - np.array(expected)[:, None, None]).max() <= 1
    grey = decode(path, 4, 6, False)
    luma = round(sum(w * c for w, c in zip((299, 587, 114), expected, strict=True)) / 1000)
    assert grey.shape == (1, 4, 6)
    assert np.abs(grey.astype(int) - luma).max() <= 1


def test_sixteen_bits_are_rounded_and_not_cut(tmp_path):
    levels = np.array([[0, 128, 129, 65_406, 65_407, 65_535]], np.uint16)
    made = decode(saved(tmp_path / "x.png", Image.fromarray(levels)), 1, 6, False)
    assert made.tolist() == [[[0, 0, 1, 254, 255, 255]]]


# Of a picture with its corners in four colours: which corners are where, once it is upright.
CORNERS = {1: "abcd", 2: "badc", 3: "dcba", 4: "cdab", 5: "acbd", 6: "cadb", 7: "dbca", 8: "bdac"}
COLOURS = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255), "d": (255, 255, 255)}


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_are_turned_upright(orientation, suffix, tmp_path):
    image = Image.new("RGB", (32, 16))
    for (x, y), name in zip([(0, 0), (16, 0), (0, 8), (16, 8)], "abcd", strict=True):
        image.paste(COLOURS[name], (x, y, x + 16, y + 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"x.{suffix}", image, exif=exif, **({} if suffix == "png" else {"quality": 100}))
    height, width = (32, 16) if orientation > 4 else (16, 32)
    assert look(path) == decoding.Header(height, width, True)
    made = decode(path, height, width, True)
    places = [(2, 2), (2, width - 3), (height - 3, 2), (height - 3, width - 3)]
    nearest = [min(COLOURS, key=lambda k: np.abs(made[:, y, x].astype(int) - COLOURS[k]).sum()) for y, x in places]
    assert "".join(nearest) == CORNERS[orientation]


def test_notes_that_cannot_be_read_are_left_alone(tmp_path):
    path = saved(tmp_path / "x.jpg", flat("RGB", RED), exif=b"Exif\0\0II*\0 and nothing that makes sense")
    with decoding.quietly():
        assert decode(path, 4, 6, True).shape == (3, 4, 6)
        assert look(path).width == 6


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(suffix, tmp_path):
    frames = [Image.new("RGB", (6, 4), c) for c in (RED, (0, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"x.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert decode(path, 4, 6, True)[:, 2, 2].tolist() == list(RED)


def test_the_middle_is_cut_out(tmp_path):
    image = Image.new("RGB", (90, 30), (0, 0, 255))
    image.paste(RED, (30, 0, 60, 30))
    wide, high = saved(tmp_path / "x.png", image), saved(tmp_path / "y.png", image.rotate(90, expand=True))
    for path in (wide, high):
        made = decode(path, 30, 30, True)
        assert (made == np.array(RED, np.uint8)[:, None, None]).all()


def test_fine_stripes_become_even_grey_and_no_pattern(tmp_path):
    """Every other row is white: a reduction that left out rows would give black, white or stripes."""
    stripes = np.zeros((210, 210), np.uint8)
    stripes[::2] = 255
    made = decode(saved(tmp_path / "x.png", Image.fromarray(stripes)), 30, 30, False)
    assert np.abs(made[:, 2:-2].astype(int) - 128).max() <= 6


def test_a_picture_of_the_right_size_is_left_alone_and_a_small_one_enlarged(tmp_path):
    image = drawn(3, (32, 32))
    path = saved(tmp_path / "x.png", image)
    assert np.array_equal(decode(path, 32, 32, True), np.asarray(image).transpose(2, 0, 1))
    assert decode(saved(tmp_path / "y.png", Image.new("L", (1, 1), 9)), 16, 16, False).tolist() == [[[9] * 16] * 16]


def test_a_large_jpeg_decoded_small_is_nearly_the_same(tmp_path):
    path = saved(tmp_path / "x.jpg", drawn(1, (800, 600)).resize((1600, 1200), Image.Resampling.BICUBIC), quality=95)
    with Image.open(path) as image:
        whole = np.asarray(image.convert("RGB").crop((200, 0, 1400, 1200)).resize((32, 32), Image.Resampling.LANCZOS))
    made = decode(path, 32, 32, True).transpose(1, 2, 0)
    assert np.abs(made.astype(int) - whole).mean() < 2


# what is no picture


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width=50_000, height=50_000):
    """A PNG of a few bytes whose header promises billions of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(kind, image=None, **options):
    content = io.BytesIO()
    (image or drawn(0)).save(content, kind, **options)
    return content.getvalue()


BROKEN = {
    "nothing": (b"", "it is empty"),
    "text": (b"<html>not found</html>", "it is no png, jpeg or webp"),
    "another format": (encoded("GIF"), "it is no png, jpeg or webp"),
    "a header and no more": (encoded("PNG")[:40], "it is no png"),
    "cut off PNG": (encoded("PNG")[:-60], "truncated"),
    "cut off JPEG": (encoded("JPEG")[:-200], "truncated"),
    "cut off WebP": (encoded("WEBP")[:-40], ""),
    "a bomb": (bomb(), "decompression bomb"),
    "a bomb below Pillow's own limit": (bomb(8_500, 8_000), "more than 64,000,000"),
    "damaged in the middle": (encoded("PNG")[:60] + b"\xff" * 20 + encoded("PNG")[80:], ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_picture_is_named_with_the_reason(name, tmp_path):
    content, said = BROKEN[name]
    folder(tmp_path / "x", 5)
    (tmp_path / "x" / "broken.png").write_bytes(content)
    message = refusal(tmp_path / "x", size=16, colour=True)
    assert "broken.png: " in message
    assert said in message.lower()
    assert message.count(";") <= 1
    with pytest.raises(UnreadableError), decoding.quietly():
        decode(tmp_path / "x" / "broken.png", 16, 16, True)


def test_pillows_own_limit_holds_where_it_is_lower(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert "exceeds limit" in refusal(folder(tmp_path / "x", 3), size=8)


def test_the_first_five_are_named(tmp_path):
    folder(tmp_path / "x", 5)
    for i in range(9):
        (tmp_path / "x" / f"bad{i}.jpg").write_bytes(b"no")
    message = refusal(tmp_path / "x", size=16, colour=True)
    assert [f"bad{i}.jpg" in message for i in range(9)] == [True] * 5 + [False] * 4
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_links_that_lead_nowhere_pipes_and_folders_named_as_pictures(tmp_path):
    where = folder(tmp_path / "x", 5)
    (where / "link.png").symlink_to(tmp_path / "nowhere.png")
    assert "link.png: the link leads nowhere" in refusal(where, size=16)
    (where / "link.png").unlink()
    (where / "circle.png").symlink_to(where / "circle.png")
    assert "circle.png: the link leads nowhere" in refusal(where, size=16)
    (where / "circle.png").unlink()
    os.mkfifo(where / "pipe.png")
    assert "pipe.png: it is no file" in refusal(where, size=16)
    (where / "pipe.png").unlink()
    (where / "folder.png").mkdir()
    assert len(everything(open_data(str(where), num_valid=0, options={"size": 16}))) == 5


def test_pictures_that_cannot_be_opened_are_named(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    where = folder(tmp_path / "x", 5)
    (where / "000.png").chmod(0)
    assert "000.png: " in refusal(where, size=16)


def test_pillows_warnings_stay_within(tmp_path):
    where = folder(tmp_path / "x", 5)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0 and so on"
    saved(where / "odd.jpg", drawn(1), exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_data(str(where), options={"size": 16})
    assert not caught


# folders


def test_a_loop_of_links_ends(tmp_path):
    where = folder(tmp_path / "x", 12, classes=("cat", "dog"))
    (where / "cat" / "again").symlink_to(where)
    (where / "cat" / "self").symlink_to(where / "cat")
    data = open_data(str(where), num_valid=0, options={"size": 16})
    assert len(data.train) + len(data.test) == 12


def test_linked_folders_are_classes_like_others(tmp_path):
    there = folder(tmp_path / "there", 12, classes=("cat", "dog"))
    where = tmp_path / "x"
    where.mkdir()
    for name in ("cat", "dog"):
        (where / name).symlink_to(there / name)
    assert open_data(str(where), options={"size": 16}).view.reading.classes == ("cat", "dog")


def test_sub_folders_are_classes(tmp_path):
    where = folder(tmp_path / "x", 40, classes=("dog", "cat"))
    (where / "cat" / "deeper").mkdir()
    drawn(77).save(where / "cat" / "deeper" / "x.PNG")
    data = open_data(str(where), options={"size": 8})
    assert data.view.reading == Pictures(8, True, ("cat", "dog"))
    assert [data.view.reading.class_name(label) for label in (0, 1, 2)] == ["cat", "dog", "2"]
    labels = torch.cat([data.split(name).labels for name in ("train", "valid", "test")])
    assert labels.dtype == torch.int64
    assert torch.bincount(labels).tolist() == [21, 20]
    # The label is that of the very picture.
    decode_it = [decode(p, 8, 8, True) for p in sorted((where / "dog").iterdir())]
    dogs = {tuple(x.flatten()) for x in decode_it}
    batch = data.train.gather(torch.arange(len(data.train)))
    assert [tuple(x.flatten().tolist()) in dogs for x in batch.x] == batch.label.bool().tolist()


@pytest.mark.parametrize("classes", [(), ("img_align",)])
def test_a_flat_folder_has_no_labels(classes, tmp_path):
    data = open_data(str(folder(tmp_path / "x", 10, classes=classes)), options={"size": 8})
    assert data.train.labels is None
    assert data.view.reading.classes == ()


def test_pictures_beside_sub_folders_are_refused(tmp_path):
    where = folder(tmp_path / "x", 10, classes=("cat", "dog"))
    drawn(0).save(where / "stray.png")
    assert "stray.png" in refusal(where, size=8)


def test_folders_train_and_test_are_the_splits(tmp_path):
    folder(tmp_path / "x" / "train", 30, classes=("cat", "dog"))
    folder(tmp_path / "x" / "test", 8, classes=("cat", "dog"))
    data = open_data(str(tmp_path / "x"), num_valid=6, options={"size": 8})
    assert (len(data.train), len(data.valid), len(data.test)) == (24, 6, 8)
    assert sorted(data.test.labels.tolist()) == [0] * 4 + [1] * 4
    assert 0 < data.valid.labels.sum() < 6
    expected = [decode(p, 8, 8, True) for p in sorted((tmp_path / "x" / "test").rglob("*.*"))]
    assert np.array_equal(data.test.gather(torch.arange(8)).x.numpy(), np.stack(expected))


@pytest.mark.parametrize("names", [("train", "val"), ("train", "test", "valid")])
def test_other_splits_are_not_taken_for_classes(names, tmp_path):
    for name in names:
        folder(tmp_path / "x" / name, 4)
    assert "look like splits" in refusal(tmp_path / "x", size=8)


def test_hidden_and_other_files_are_left_out(tmp_path):
    where = folder(tmp_path / "x", 10)
    (where / "notes.txt").write_text("mine")
    (where / ".hidden.png").write_bytes(b"no picture")
    (where / ".thumbs").mkdir()
    (where / ".thumbs" / "a.png").write_bytes(b"no picture")
    (where / "Thumbs.db").write_bytes(b"\0")
    assert len(everything(open_data(str(where), num_valid=0, options={"size": 8}))) == 10


def test_a_folder_without_pictures_says_what_is_in_it(tmp_path):
    (tmp_path / "x").mkdir()
    assert "is empty" in refusal(tmp_path / "x")
    (tmp_path / "x" / "a.gif").write_bytes(b"")
    (tmp_path / "x" / "b.gif").write_bytes(b"")
    assert ".gif (2)" in refusal(tmp_path / "x")


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_pictures_for_the_splits_are_refused(count, tmp_path):
    assert "at least 3" in refusal(folder(tmp_path / "x", count), size=8)


def test_names_that_are_no_text(tmp_path):
    where = os.fsencode(tmp_path / "x")
    for name in (b"caf\xe9", b"dog"):
        os.makedirs(os.path.join(where, name))
        for i in range(4):
            Path(os.fsdecode(os.path.join(where, name, b"%d\xff.png" % i))).write_bytes(encoded("PNG"))
    data = open_data(str(tmp_path / "x"), options={"size": 8})
    assert data.view.reading.classes == ("caf\\xe9", "dog")
    (tmp_path / "x" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    assert "\\xff.png" in refusal(tmp_path / "x", size=8)


# what is decided, and kept


def test_pictures_of_one_size_need_no_size(tmp_path):
    data = open_data(str(folder(tmp_path / "x", 10)))
    assert data.view.reading == Pictures((30, 40), True, ())
    assert (data.event_shape, data.support) == ((3, 30, 40), Support.EIGHT_BIT)
    drawn(5, (20, 20)).save(tmp_path / "x" / "other.png")
    message = refusal(tmp_path / "x")
    assert "2 sizes, the commonest 40 x 30 (91%)" in message
    assert "--size 32" in message


def test_large_pictures_are_read_at_a_size_that_was_asked_for(tmp_path):
    (tmp_path / "x").mkdir()
    for i in range(3):
        Image.new("L", (600, 600)).save(tmp_path / "x" / f"{i}.png")
    assert "600 x 600" in refusal(tmp_path / "x")
    assert open_data(str(tmp_path / "x"), options={"size": 600}).event_shape == (1, 600, 600)


def test_grey_pictures_stay_grey_unless_one_can_have_colours(tmp_path):
    (tmp_path / "x").mkdir()
    for i in range(5):
        drawn(i).convert("L").save(tmp_path / "x" / f"{i}.png")
    path = str(tmp_path / "x")
    assert open_data(path).event_shape == (1, 30, 40)
    assert open_data(path, options={"colour": True}).event_shape == (3, 30, 40)
    drawn(9).save(tmp_path / "x" / "9.jpg")
    assert open_data(path).event_shape == (3, 30, 40)
    assert open_data(path, options={"colour": False}).event_shape == (1, 30, 40)


def test_a_fitted_reading_reads_other_folders_the_same_way(tmp_path):
    data = open_data(str(folder(tmp_path / "x", 12, classes=("cat", "dog"))), options={"size": 8})
    again = spec.build(spec.describe(data.view))
    assert again == data.view
    other = tmp_path / "y"
    for i in range(6):
        (other / "dog").mkdir(parents=True, exist_ok=True)
        (other / "cat").mkdir(parents=True, exist_ok=True)
        drawn(i, (99, 70)).convert("L").save(other / ("dog" if i % 3 else "cat") / f"{i}.png")
    seen = again.of(str(other))
    assert seen.event_shape == (3, 8, 8)
    assert sorted(torch.cat([seen.split(n).labels for n in ("train", "valid", "test")]).tolist()) == [0, 0, 1, 1, 1, 1]
    assert again.of(str(folder(tmp_path / "flat", 6))).train.labels is None
    (other / "bird").mkdir()
    drawn(0).save(other / "bird" / "0.png")
    with pytest.raises(DataError, match=r"pictures in bird, but the classes here are cat, dog"):
        again.of(str(other))


@pytest.mark.parametrize("size", [0, -1, 5000, (8, 0)])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(UsageError, match="--size"):
        Pictures(size=size)
    with pytest.raises(CheckpointError):
        spec.build({"class": "lowerbound.data.Pictures", "size": 0, "colour": True, "classes": []})


# packed once


def test_nothing_is_decoded_twice(tmp_path, monkeypatch):
    where = folder(tmp_path / "x", 30)
    told = []
    first = open_data(str(where), options={"size": 8}, on_progress=lambda *parts: told.append(parts))
    assert told[-1] == (30, 30)
    monkeypatch.setattr(pictures, "decode", lambda *a, **k: pytest.fail("decoded again"))
    again = open_data(str(where), options={"size": 8})
    assert torch.equal(everything(first), everything(again))
    assert first.test.fingerprint == again.test.fingerprint
    moved = where.rename(tmp_path / "elsewhere")
    assert torch.equal(everything(first), everything(open_data(str(moved), options={"size": 8})))


def test_what_has_changed_is_decoded_anew(tmp_path):
    where = folder(tmp_path / "x", 10)
    before = everything(open_data(str(where), options={"size": 8}))
    Image.new("RGB", (40, 30), RED).save(where / "003.png")
    after = everything(open_data(str(where), options={"size": 8}))
    assert (before != after).flatten(1).any(1).sum() == 1
    (where / "003.png").unlink()
    assert len(everything(open_data(str(where), options={"size": 8}))) == len(before) - 1
    assert open_data(str(where), options={"size": 9}).event_shape == (3, 9, 9)
    assert open_data(str(where), options={"size": 8, "colour": False}).event_shape == (1, 8, 8)


def test_many_pictures_are_read_from_the_packed_file(tmp_path, monkeypatch):
    where = str(folder(tmp_path / "x", 30, classes=("cat", "dog")))
    held = open_data(where, options={"size": 8})
    assert isinstance(held.train, ArraySource)
    monkeypatch.setattr(stored, "HELD_BYTES", 100)
    read = open_data(where, options={"size": 8})
    assert isinstance(read.train, Subset)
    assert isinstance(read.train.source, StoredSource)
    for name in ("train", "valid", "test"):
        index = torch.randperm(len(held.split(name)))
        one, other = held.split(name).examples(index), read.split(name).examples(index)
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.label, other.label)


def test_more_pictures_than_are_decoded_at_once_stay_in_order(tmp_path, monkeypatch):
    where = folder(tmp_path / "x", 30)
    expected = everything(open_data(str(where), options={"size": 8}))
    monkeypatch.setattr(pictures, "_CHUNK_BYTES", 4 * 3 * 8 * 8)
    monkeypatch.setenv("LOWERBOUND_CACHE", str(tmp_path / "other"))
    told = []
    data = open_data(str(where), options={"size": 8}, on_progress=lambda *parts: told.append(parts))
    assert torch.equal(everything(data), expected)
    assert [done for done, _ in told] == [4, 8, 12, 16, 20, 24, 28, 30]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    where = folder(tmp_path / "x", 10)
    real = cache._write_rows

    def onto_a_full_disk(file, *rest):
        with open("/dev/full", "wb") as full:
            real(full, *rest)

    monkeypatch.setattr(cache, "_write_rows", onto_a_full_disk)
    assert "No space left" in refusal(where, ResourceError, size=64)
    assert not list((tmp_path / "cache").rglob("*.*"))
    run = tmp_path / "run"
    assert_refused(call("train", "conv", "--data", where, "--size", 64, "--out", run), 6, "LOWERBOUND_CACHE")
    assert not run.exists()


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWERBOUND_CACHE", str(tmp_path / "file"))
    assert "could not be written" in refusal(folder(tmp_path / "x", 10), ResourceError, size=8)


# the commands

SMALL = ("--epochs", 1, "--channels", 4, "--features", 16, "--latent-dim", 2, "--batch-size", 16, "--device", "cpu")


def test_the_commands_on_a_folder(tmp_path):
    where, run = folder(tmp_path / "x", 60), tmp_path / "run"
    answer = succeed(call("train", "conv", "--data", where, "--size", 16, "--out", run, *SMALL, "--json"))
    assert answer.json["valid"]["likelihood"] == "DiscretisedLogistic"
    judged = succeed(call("evaluate", run, "--samples", 5, "--gap", 0, "--json")).json
    assert judged["is_likelihood"]
    assert 2 < judged["bits_per_dim"] < 9
    succeed(call("sample", run, "--n", 9, "--out", tmp_path / "s.png"))
    with Image.open(tmp_path / "s.png") as grid:
        assert grid.mode == "RGB"
    succeed(call("reconstruct", run, "--data", folder(tmp_path / "y", 20), "--out", tmp_path / "r.png"))
    succeed(call("encode", run, "--out", tmp_path / "c.npz"))
    with np.load(tmp_path / "c.npz") as codes:
        assert codes["loc"].shape == (6, 2)


def test_a_conditional_model_on_sub_folders(tmp_path):
    where, run = folder(tmp_path / "x", 60, classes=("cat", "dog")), tmp_path / "run"
    options = ("--size", 8, "--grey", "--epochs", 1, "--width", 8, "--batch-size", 16, "--device", "cpu")
    succeed(call("train", "conditional", "--data", where, "--out", run, *options))
    succeed(call("sample", run, "--n", 4, "--label", 1, "--out", tmp_path / "s.png"))


def test_options_of_folders_stand_in_a_configuration_too(tmp_path):
    where, config = folder(tmp_path / "x", 40), tmp_path / "c.toml"
    config.write_text("size = 12\ngrey = true\n")
    command = ("train", "conv", "--data", where, "--out", tmp_path / "run", "--config", config, *SMALL)
    succeed(call(*command, "--binarise", "none", "--likelihood", "logistic-mixture"))
    judged = succeed(call("evaluate", tmp_path / "run", "--samples", 2, "--gap", 0, "--json")).json
    assert judged["likelihood"] == "DiscretisedLogisticMixture"
    succeed(call(*command, "--binarise", "none", "--likelihood", "logistic-mixture", "--resume"))


@pytest.mark.parametrize("options", [("--size", 16), ("--grey",), ("--colour",)])
def test_options_that_say_nothing_of_other_sources_are_refused(options, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((30, 8, 8), np.uint8))
    for source in ("digits", tmp_path / "x.npy"):
        answer = call("train", "mlp", "--data", source, "--out", tmp_path / "run", *options)
        assert_refused(answer, 2, "option")


def test_options_that_exclude_one_another_are_refused(tmp_path):
    answer = call("train", "mlp", "--data", tmp_path, "--out", tmp_path / "run", "--grey", "--colour")
    assert_refused(answer, 2, "exclude one another")


def test_a_folder_that_cannot_be_read_is_status_3(tmp_path):
    where = folder(tmp_path / "x", 5)
    (where / "bad.png").write_bytes(b"text")
    assert_refused(call("train", "conv", "--data", where, "--size", 8, "--out", tmp_path / "run"), 3, "bad.png")
    assert_refused(call("train", "conv", "--data", tmp_path / "none", "--out", tmp_path / "run"), 3, "no data source")
