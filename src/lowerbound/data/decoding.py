"""One picture file as an array: what every mode, size and oddity of a picture becomes.

* PNG, JPEG and WebP are read, told by their content and not by their name; of an animation the first frame.
* A picture is turned upright as its EXIF orientation says.
* What is transparent becomes white, in proportion to how transparent it is.
* Palettes and CMYK become red, green and blue; black and white become levels 0 and 255; 16 bits are rounded to 8.
* Colour becomes grey by ITU-R 601-2 luma, and grey becomes colour with three equal channels.
* To another size: the largest centred part of the wanted shape is cut out, then resampled with Lanczos' filter, which
  takes in all pixels that fall together (no aliasing), and is used to enlarge as well.
* A picture of more than 64 million pixels is refused before a pixel is decoded.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 64_000_000
# To be raised when anything above changes: pictures that were packed before are then decoded anew.
POLICY = 1
_FORMATS = ("PNG", "JPEG", "WEBP")
_GREY = ("1", "L", "LA", "La")
_HIGHEST = 65_535
# Of the eight orientations of EXIF, the last four swap height and width.
_ORIENTATION, _FIRST_TURNED = 0x0112, 5
# Large pictures are decoded one at a time, or a few threads of them would fill the memory.
_LARGE_PIXELS = 8_000_000
_LARGE = threading.Lock()


class UnreadableError(Exception):
    """A file that is no picture; the message says why, to go after a colon."""


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded.

    Attributes:
        height: Pixels, upright.
        width: Pixels, upright.
        colour: Whether its pixels can have colours.
    """

    height: int
    width: int
    colour: bool


@contextmanager
def quietly() -> Iterator[None]:
    """Has Pillow's remarks on odd files unsaid, while pictures are read in any thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Its own limit, where somebody has lowered it.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def look(path: Path) -> Header:
    """Reads the header of a picture.

    Raises:
        UnreadableError: The file is no picture that is read here.
    """
    with _opened(path) as image:
        width, height = image.size
        # The orientation of a square makes no difference to its size, and some formats keep it at their end.
        if width != height and _turned(image):
            width, height = height, width
        return Header(height, width, image.mode not in _GREY and not image.mode.startswith("I"))


def decode(path: Path, height: int, width: int, colour: bool) -> np.ndarray:
    """Reads a picture as uint8 `[3, height, width]` in colour, or `[1, height, width]` in grey.

    Raises:
        UnreadableError: The file is no picture that is read here, or it is damaged.
    """
    with _opened(path) as image, _few_at_once(image):
        # A JPEG can be decoded at an eighth of its size; twice the size that is wanted is left to the filter.
        image.draft(None, (2 * max(height, width),) * 2)
        levels = _upright(_levels(image, colour))
        fitted = ImageOps.fit(levels, (width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(fitted)
    return pixels.transpose(2, 0, 1) if colour else pixels[None]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableError(f"it has {image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}")
            yield image
    except UnreadableError:
        raise
    except FileNotFoundError as error:
        raise UnreadableError("the link leads nowhere" if path.is_symlink() else "it is gone") from error
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise UnreadableError("it is empty" if empty else "it is no PNG, JPEG or WebP picture") from error
    except Exception as error:  # a damaged picture can end in anything
        raise UnreadableError(" ".join(str(error).split()).rstrip(".") or type(error).__name__) from error


def _few_at_once(image: Image.Image) -> AbstractContextManager[object]:
    return _LARGE if image.width * image.height > _LARGE_PIXELS else nullcontext()


def _levels(image: Image.Image, colour: bool) -> Image.Image:
    """Returns a picture in 8 bits, grey or colour, with white behind it."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > _HIGHEST:
            raise UnreadableError(f"its levels go from {values.min()} to {values.max()}, beyond 16 bits")
        rounded = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        rounded.info = image.info
        return rounded.convert("RGB" if colour else "L")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, (255, 255, 255, 255))
        laid = Image.alpha_composite(white, above)
        laid.info = image.info
        image = laid
    return image.convert("RGB" if colour else "L")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as every viewer does with notes that cannot be read
        return image


def _turned(image: Image.Image) -> bool:
    """Whether a picture is stored lying on its side."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1)) >= _FIRST_TURNED
    except Exception:  # see _upright
        return False
