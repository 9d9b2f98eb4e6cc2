"""Folders of pictures.

Sub-folders are classes: the label of a picture is the place of its folder among the names in order. A folder that holds
pictures itself, or a single sub-folder, has no labels. Sub-folders `train` and `test` are those splits. Everything is
decoded once (`lowerbound.data.decoding` says how), and packed into a file in the user's cache whose name follows from
how the pictures are read and from the name, size and time of each: the next run finds it, and a folder that has
changed gets another. Pictures in memory or from that file are the same.

Files with other suffixes and everything whose name begins with a dot are left out. A file with a picture's suffix that
is no picture is an error: the data would otherwise be less than they look, and nobody would know. Links are followed,
but no folder is entered twice, so a loop ends.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowerbound.data import cache
from lowerbound.data.decoding import MAX_PIXELS, POLICY, SUFFIXES, Header, UnreadableError, decode, look, quietly
from lowerbound.data.reading import Reading, Report, shuffled, shuffled_split
from lowerbound.data.source import ArraySource, Source, Support
from lowerbound.data.stored import StoredSource, is_held, rows_of
from lowerbound.errors import DataError, UsageError

_LARGEST = 4096
# Larger pictures are hardly ever meant to be modelled pixel by pixel, so it has to be said.
_UNASKED = 512
_AT_ONCE, _CHUNK_BYTES = 256, 64 << 20
_FEWEST = 3
_THREADS = 8
_LISTED = 5
_SPLITS = ("train", "test")
_OTHER_SPLITS = ("val", "valid", "validation", "dev")


@dataclass(frozen=True)
class Pictures(Reading):
    """A folder of PNG, JPEG and WebP pictures.

    Attributes:
        size: The side of the squares that they become, or (height, width); None for their own if all have the same.
        colour: Whether they become colour pictures, `[3, H, W]`, or grey ones, `[1, H, W]`; None for colour if any
            picture can have colours.
        classes: The names of the sub-folders that are classes, in the order of their labels; empty for no labels, None
            for those that there are.

    Raises:
        UsageError: The size cannot be.

    Example:
        >>> Pictures(size=32).height_and_width
        (32, 32)
    """

    size: int | tuple[int, int] | None = None
    colour: bool | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not all(1 <= side <= _LARGEST for side in self.height_and_width):
            raise UsageError(f"Pictures are read at a --size from 1 to {_LARGEST:,}; got {self.size}.")

    @property
    def height_and_width(self) -> tuple[int, int]:
        """The size that the pictures are read at, as (height, width)."""
        assert self.size is not None
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def fitted(self, path: Path, report: Report | None = None) -> Pictures:
        """Returns this reading with size, colour and classes decided.

        Raises:
            DataError: There are no pictures, some cannot be read, or they have several sizes and `size` is None.
        """
        if None not in (self.size, self.colour, self.classes):
            return self
        files = _Folder(path)
        decided = self
        if self.classes is None:
            decided = replace(decided, classes=files.classes)
        if self.size is None or self.colour is None:
            headers = _headers(files)
            if self.size is None:
                decided = replace(decided, size=_common_size(headers, path))
            if self.colour is None:
                decided = replace(decided, colour=any(header.colour for header in headers))
        return decided

    def prepare(self, path: Path, report: Report | None = None) -> None:
        """Decodes the pictures, unless that was done before.

        Raises:
            DataError: There are no pictures, or some cannot be read.
            ResourceError: The disk is full or refuses.
        """
        self._packed(_Folder(path), report)

    def open(self, path: Path) -> tuple[Source, Source]:
        files = _Folder(path)
        whole = self._whole(files)
        if files.has_splits:
            # Listed in order, the pictures to test on come first.
            cut = sum(name == "test" for name in files.splits)
            return shuffled(whole.slice(cut, len(whole))), whole.slice(0, cut)
        if len(whole) < _FEWEST:
            raise DataError(f"{path} should have at least {_FEWEST} pictures, one for each split; it has {len(whole)}.")
        return shuffled_split(whole)

    def whole(self, path: Path) -> Source:
        """Reads all pictures in the order of their names, sub-folders and splits included."""
        return self._whole(_Folder(path))

    def has_splits(self, path: Path) -> bool:
        return _Folder(path).has_splits

    def class_name(self, label: int) -> str:
        """Returns the name of the folder with the pictures of that label."""
        return (self.classes or ())[label] if label < len(self.classes or ()) else str(label)

    def _whole(self, files: _Folder) -> Source:
        rows, name = rows_of(self._packed(files)), str(files.path)
        labels = self._labels(files, files.path)
        if is_held(len(rows) * rows.row_bytes):
            values = torch.from_numpy(rows.read(np.arange(len(rows))))
            return ArraySource(values, labels, name=name)
        return StoredSource(rows, labels, support=Support.EIGHT_BIT, name=name)

    @property
    def _event_shape(self) -> tuple[int, int, int]:
        return (3 if self.colour else 1, *self.height_and_width)

    def _packed(self, files: _Folder, report: Report | None = None) -> Path:
        """Returns the file with the decoded pictures; makes it if it is not there."""
        digest = hashlib.sha256(repr((POLICY, self._event_shape)).encode())
        for file in files.files:
            digest.update(repr((os.fsencode(file.name), file.size, file.changed)).encode())
        target = cache.cache_dir() / "pictures" / f"{digest.hexdigest()}.npy"
        if not target.exists():
            shape = (len(files), *self._event_shape)
            cache.pack(target, shape, np.dtype(np.uint8), self._decoded(files, report))
        return target

    def _decoded(self, files: _Folder, report: Report | None) -> Iterator[np.ndarray]:
        height, width = self.height_and_width
        done, at_once = 0, max(1, min(_AT_ONCE, _CHUNK_BYTES // math.prod(self._event_shape)))
        read = partial(decode, height=height, width=width, colour=bool(self.colour))
        for pictures in _each(files, read, at_once):
            yield np.stack(pictures)
            done += len(pictures)
            if report is not None:
                report(done, len(files))

    def _labels(self, files: _Folder, path: Path) -> Tensor | None:
        if not self.classes or not files.classes:
            return None
        unknown = sorted(set(files.classes) - set(self.classes))
        if unknown:
            raise DataError(
                f"{path} has pictures in {', '.join(unknown[:_LISTED])}, but the classes here are "
                f"{', '.join(self.classes[:20])}. Put them into folders of these names, or all into one folder."
            )
        number = {name: place for place, name in enumerate(self.classes)}
        return torch.tensor([number[name] for name in files.labels])


@dataclass(frozen=True)
class _File:
    """A picture's file: its name within the folder, and what changes when it does."""

    name: str
    size: int
    changed: int


class _Folder:
    """The pictures of a folder, in the order of their names.

    Attributes:
        files: All of them.
        splits: The split of each, where the folder has them.
        labels: The name of the class of each; all empty where there are no classes.
        classes: The names of the classes in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = sorted(_walk(path), key=lambda file: file.name.split("/"))
        if not self.files:
            raise DataError(
                f"{path} should hold pictures, files ending in {', '.join(SUFFIXES)}, but {_instead(path)}. Check the "
                "path, or convert them."
            )
        folders = [tuple(_shown(part) for part in file.name.split("/")[:-1]) for file in self.files]
        tops = {folder[:1] for folder in folders}
        names = {folder[0] for folder in folders if folder}
        self.has_splits = names == set(_SPLITS) and () not in tops
        if "train" in names and not self.has_splits and names <= {*_SPLITS, *_OTHER_SPLITS}:
            raise DataError(
                f"{path} has the sub-folders {', '.join(sorted(names))}, which look like splits. Splits are train and "
                "test, both; put pictures to validate on into train (--valid N takes the last of them)."
            )
        self.splits = [folder[0] for folder in folders] if self.has_splits else []
        below = [folder[1:] if self.has_splits else folder for folder in folders]
        found = sorted({folder[0] for folder in below if folder})
        if len(found) > 1 and () in below:
            loose = self.files[below.index(())].name
            raise DataError(
                f"{path} has pictures in sub-folders, which are classes, and beside them, {_shown(loose)} for one. Put "
                "all of them into sub-folders, or none."
            )
        # A single class says nothing.
        self.classes = tuple(found) if len(found) > 1 else ()
        self.labels = [folder[0] if self.classes else "" for folder in below]

    def __len__(self) -> int:
        return len(self.files)


def _walk(root: Path) -> Iterator[_File]:
    """Yields the files with a picture's suffix; what is no file is named later, when it is read."""
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        within = waiting.pop()
        folder = root / within
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"The folder {folder} cannot be read: {error.strerror}. Check its permissions.") from error
        deeper = []
        for entry in entries:
            name = f"{within}{entry.name}"
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                deeper.append(f"{name}/")
            elif entry.name.lower().endswith(SUFFIXES):
                yield _file(entry, name)
        # In order, so that of two ways to one folder it is always the same that is taken.
        waiting += reversed(deeper)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _file(entry: os.DirEntry[str], name: str) -> _File:
    try:
        status = entry.stat()
    except OSError:  # a link that leads nowhere
        return _File(name, -1, 0)
    # To open a pipe would be to wait for ever.
    return _File(name, status.st_size if stat.S_ISREG(status.st_mode) else -1, status.st_mtime_ns)


def _each(files: _Folder, read: Callable[[Path], Any], at_once: int = _AT_ONCE) -> Iterator[list[Any]]:
    """Reads all pictures in several threads; yields what came of them in order, some at a time.

    Raises:
        DataError: Some cannot be read; the first five are named.
    """
    bad: list[str] = []

    def attempt(file: _File) -> Any:
        path = files.path / file.name
        try:
            if file.size < 0:
                raise UnreadableError("the link leads nowhere" if path.is_symlink() else "it is no file")
            return read(path)
        except UnreadableError as error:
            return error

    with quietly(), ThreadPoolExecutor(_processors()) as pool:
        for start in range(0, len(files), at_once):
            some = files.files[start : start + at_once]
            found = list(pool.map(attempt, some))
            for file, one in zip(some, found, strict=True):
                if isinstance(one, UnreadableError):
                    bad.append(f"{_shown(file.name)}: {one}")
            if not bad:
                yield found
            elif len(bad) >= _LISTED:
                break
    if bad:
        raise DataError(
            f"{files.path} should hold PNG, JPEG and WebP pictures of up to {MAX_PIXELS:,} pixels, but cannot be read "
            f"at {'; '.join(bad[:_LISTED])}. Mend these files, remove them, or rename them so that they are left out."
        )


def _headers(files: _Folder) -> list[Header]:
    return [header for some in _each(files, look) for header in some]


def _common_size(headers: Sequence[Header], path: Path) -> int | tuple[int, int]:
    sizes = Counter((header.height, header.width) for header in headers)
    (height, width), count = sizes.most_common(1)[0]
    if len(sizes) > 1 or max(height, width) > _UNASKED:
        others = f", the commonest {width} x {height} ({count / len(headers):.0%})" if len(sizes) > 1 else ""
        found = f"{len(sizes):,} sizes" if len(sizes) > 1 else f"{width} x {height} pixels"
        raise DataError(
            f"The pictures in {path} should have one size, at most {_UNASKED} pixels a side, but have {found}{others}. "
            "Say at which size to read them, --size 32 for one: their middle is cut out and scaled to that square."
        )
    return height if height == width else (height, width)


def _instead(path: Path) -> str:
    """Says what is in a folder instead of pictures."""
    names = [name for _, _, files in os.walk(path) for name in files]
    suffixes = Counter(os.path.splitext(_shown(name))[1].lower() or "no suffix" for name in names)
    if not suffixes:
        return "is empty"
    return "has only files with " + ", ".join(f"{suffix} ({n:,})" for suffix, n in suffixes.most_common(_LISTED))


def _shown(name: str) -> str:
    """Returns a file's name with what is no text written out, so that it can be printed and kept."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _processors() -> int:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_THREADS, there)
