"""From a file's bytes to the uint8 pixels that a person would expect to see.

Transparent pixels are shown on white, CMYK is inverted where Adobe's marker says so, 16-bit grey keeps its
high byte, EXIF orientation is applied, animations give their first frame. Knows the size before it decodes,
so that a transform can ask for the part that it needs. Dims: h w pixels, c channels.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vit_jax.errors import UserError, first_line

MAX_PIXELS = 89_478_485  # a larger image is refused, as Pillow warns: 1 GiB at 3 bytes with working copies
PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
FRAME_HEADERS = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive Huffman JPEG
NO_LENGTH = (0x01, *range(0xD0, 0xD9))  # JPEG markers without a segment behind them
END_OF_JPEG = b"\xff\xd9"
NAMED_ONLY = ("MPEG", "EPS")  # formats that Pillow recognises; it has no decoder of its own for them


class BrokenExample(UserError):
    """One example that cannot be read, by name: what `data.on_error` is about."""


class JpegHeader(NamedTuple):
    """What the markers in front of the pixels say; sizes are stored ones, before EXIF orientation."""

    height: int
    width: int
    height_offset: int
    unit_height: int
    orientation: int


class Encoded:
    """An image in its file format, decoded as far as needed. Everything raises BrokenExample with `name`."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name = data, name

    @functools.cached_property
    def jpeg(self) -> JpegHeader | None:
        """None unless libjpeg-turbo can decode it directly."""
        return jpeg_header(self.data)

    @functools.cached_property
    def pillow(self) -> Image.Image:
        """Decoded by Pillow, upright."""
        return open_pillow(self.data, self.name)

    @functools.cached_property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) in pixels, upright."""
        if self.jpeg is None:
            return self.pillow.height, self.pillow.width
        h, w, orientation = self.jpeg.height, self.jpeg.width, self.jpeg.orientation
        _refuse_bombs(h, w, self.name)
        return (w, h) if orientation in SIDEWAYS else (h, w)

    def pixels(
        self, channels: int, *, bottom: int | None = None, shrink: int = 1, quick: bool = False
    ) -> np.ndarray:
        """uint8 [h, w, c]; at least the rows above `bottom`, exactly as in the whole image.

        `shrink` 2, 4 or 8 divides both sides, rounding up, where the format can do so while decoding: compare
        the shape with `size_hw`. `quick` permits libjpeg's faster, coarser DCT and colour upsampling.
        """
        self.size_hw  # noqa: B018 - refuses what is too large before it is decoded
        if self.jpeg is None:
            return from_pillow(self.pillow, channels, self.name)
        try:
            image_hwc = _decode_jpeg(self.data, self.jpeg, bottom, shrink, quick)
        except ValueError:  # Pillow has the last word, and the better message
            return from_pillow(self.pillow, channels, self.name)
        return convert(_upright(image_hwc, self.jpeg.orientation), channels)


def open_pillow(data: bytes, name: str) -> Image.Image:
    """An upright Pillow image of encoded bytes, first frame. Raises BrokenExample with `name`."""
    try:
        image = Image.open(io.BytesIO(data))
        _refuse_bombs(image.height, image.width, name)
        image.load()
        return ImageOps.exif_transpose(image)
    except BrokenExample:
        raise
    except (
        Exception
    ) as e:  # whatever a decoder makes of hostile bytes: struct.error, IndexError, MemoryError ...
        what = "is empty" if not data else f"is not a readable image: {_reason(e)}"
        raise BrokenExample(f"{name} {what}") from e


@functools.cache
def suffixes() -> frozenset[str]:
    """The endings, as ".jpg", of files in a format that the installed Pillow decodes."""
    kinds = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in kinds.items() if _decodes(kind))


def _decodes(kind: str) -> bool:
    kind = "JPEG" if kind == "MPO" else kind  # several in one file, of which the first is a JPEG
    if kind not in Image.OPEN or kind in NAMED_ONLY:
        return False
    factory = Image.OPEN[kind][0]  # a class, or a function that chooses one
    return not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))


def from_pillow(image: Image.Image, channels: int, name: str = "image") -> np.ndarray:
    """uint8 [h, w, c] of an image of any mode. Raises UserError for channels that images do not have."""
    if channels not in PILLOW_MODES:
        raise UserError(f"data.channels={channels}: {name} has 1 (grey), 3 (RGB) or 4 (RGBA)")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BrokenExample(f"{name} has 32-bit pixels, whose white is unknown: convert it to 8 or 16 bits")
    if channels != 4 and (image.has_transparency_data or image.mode in ("La", "RGBa")):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
    return pixels_of(image.convert(PILLOW_MODES[channels]))


def convert(image_hwc: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, w, c] with `channels`: grey to RGB and back. Raises UserError for other changes."""
    have = image_hwc.shape[-1]
    if have == channels:
        return image_hwc
    if have == 1 and channels == 3:
        return np.repeat(image_hwc, 3, axis=-1)
    if have == 3 and channels in (1, 4):
        return pixels_of(Image.fromarray(image_hwc).convert(PILLOW_MODES[channels]))
    if have == 1 and channels == 4:
        return convert(convert(image_hwc, 3), 4)
    raise UserError(f"data.channels={channels}, but the images have {have}: set data.channels={have}")


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Header of an 8-bit grey or colour JPEG, else None. ITU-T T.81 section B.2."""
    if data[:2] != b"\xff\xd8":
        return None
    at, orientation = 2, 1
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        body = at + 4
        if marker in FRAME_HEADERS:
            bits, components = data[body], data[body + 5]
            height = int.from_bytes(data[body + 1 : body + 3], "big")
            width = int.from_bytes(data[body + 3 : body + 5], "big")
            if bits != 8 or components not in (1, 3) or not height or not width:
                return None
            factors = [byte & 15 for byte in data[body + 7 : body + 6 + 3 * components : 3]]
            unit = 8 * (max(factors) if components == 3 else 1)
            return JpegHeader(height, width, body + 1, unit, orientation)
        if (0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker in (0xD9, 0xDA):
            return None
        segment_end = at + 2 + int.from_bytes(data[at + 2 : body], "big")
        if marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _orientation(data[body:segment_end])
        at = segment_end
    return None


def _decode_jpeg(data: bytes, header: JpegHeader, bottom: int | None, shrink: int, quick: bool) -> np.ndarray:
    # A file that ends as it should can be cut short: the height in its header is lowered to the unit below
    # `bottom` (colours are upsampled from a row's neighbours), and libjpeg stops there. It then complains of
    # bytes left over, so strict reading is for the others, whose end may be missing.
    whole = data.endswith(END_OF_JPEG) or data[-64:].rstrip(b"\0\r\n").endswith(END_OF_JPEG)
    height, unit = header.height, header.unit_height
    if whole and bottom is not None and header.orientation == 1:
        height = min(height, -(-bottom // unit) * unit + unit)
    if height < header.height:
        cut = bytearray(data)
        cut[header.height_offset : header.height_offset + 2] = height.to_bytes(2, "big")
        data = bytes(cut)
    smaller = (
        {"min_height": -(-height // shrink), "min_width": -(-header.width // shrink)} if shrink > 1 else {}
    )
    return simplejpeg.decode_jpeg(data, "RGB", fastdct=quick, fastupsample=quick, strict=not whole, **smaller)


def _orientation(exif: bytes) -> int:
    try:
        tags = Image.Exif()
        tags.load(exif)
        value = tags.get(ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block does not make the picture unreadable
        return 1
    return value if value in range(1, 9) else 1


def _upright(image_hwc: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF `orientation` 1..8."""
    if orientation in SIDEWAYS:
        image_hwc = image_hwc.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return image_hwc[rows, columns]


def _refuse_bombs(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise BrokenExample(f"{name} is {height}x{width} pixels, more than {MAX_PIXELS:,}: make it smaller")


def pixels_of(image: Image.Image) -> np.ndarray:
    """uint8 [h, w, c] of a Pillow image, grey ones too."""
    out = np.asarray(image)
    return out[..., None] if out.ndim == 2 else out


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it has no known format"  # Pillow's message names an object in memory
    return first_line(error)
