"""Every kind of file becomes what a person would expect to see, or is refused by name."""

import io
import itertools
import zlib

import numpy as np
import pytest
from image_files import encode, photo
from PIL import Image

from vit_jax.data import decode
from vit_jax.data.decode import BrokenExample, Encoded, open_pillow

RED, GREY_LEVEL = (200, 30, 40), 90


def pixels(data: bytes, channels: int = 3) -> np.ndarray:
    return Encoded(data, "the file").pixels(channels)


# --- what images become ---


def test_transparent_pixels_are_shown_on_white() -> None:
    rgba = Image.new("RGBA", (4, 4), (*RED, 0))
    rgba.paste((*RED, 255), (0, 0, 2, 4))
    rgba.paste((*RED, 128), (0, 0, 1, 4))
    for data in (encode(rgba), encode(rgba, "WEBP", lossless=True, exact=True), encode(rgba, "TIFF")):
        out = pixels(data)
        np.testing.assert_array_equal(out[0, 1], RED)
        np.testing.assert_array_equal(out[0, 3], (255, 255, 255))
        np.testing.assert_allclose(out[0, 0], (np.array(RED) + 255) / 2, atol=1)  # rounding of alpha 128/255
    assert pixels(encode(rgba), 1)[0, 3] == 255
    np.testing.assert_array_equal(pixels(encode(rgba), 4)[0, 3], (*RED, 0))


def test_palettes_and_grey_with_transparency_are_shown_on_white() -> None:
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 1), 1)
    out = pixels(encode(palette, "PNG", transparency=1))
    np.testing.assert_array_equal(out[0, 0], RED)
    np.testing.assert_array_equal(out[1, 1], (255, 255, 255))
    grey_alpha = Image.new("LA", (2, 2), (GREY_LEVEL, 0))
    assert (pixels(encode(grey_alpha)) == 255).all()


def test_sixteen_bits_keep_their_high_byte() -> None:
    wide = np.array([[0, 257 * GREY_LEVEL], [65535, 256]], np.uint16)
    for kind in ("PNG", "TIFF"):
        out = pixels(encode(Image.fromarray(wide), kind), 1)[..., 0]
        np.testing.assert_array_equal(out, [[0, GREY_LEVEL], [255, 1]])


def test_cmyk_becomes_the_colour_that_was_printed() -> None:
    out = pixels(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(out.astype(int) - (255, 0, 0)).max() < 8  # JPEG's own loss


def test_grey_files_become_rgb_and_colour_files_grey() -> None:
    grey = Image.new("L", (8, 8), GREY_LEVEL)
    for kind in ("PNG", "JPEG"):
        out = pixels(encode(grey, kind))
        assert out.shape == (8, 8, 3)
        assert (out == GREY_LEVEL).all()
        assert pixels(encode(grey, kind), 1).shape == (8, 8, 1)
    for kind in ("PNG", "JPEG"):
        data = encode(photo(), kind)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        np.testing.assert_array_equal(pixels(data, 1)[..., 0], expected)


def test_one_bit_images_become_black_and_white() -> None:
    assert set(np.unique(pixels(encode(Image.new("1", (3, 3), 1)), 1))) == {255}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(), kind, exif=exif)
    picture = Encoded(data, "photo")
    upright = open_pillow(data, "photo")
    assert picture.size_hw == (upright.height, upright.width)
    assert picture.size_hw == ((80, 96) if orientation < 5 else (96, 80))
    np.testing.assert_array_equal(picture.pixels(3), np.asarray(upright))
    np.testing.assert_array_equal(picture.pixels(3, bottom=20)[:20], np.asarray(upright)[:20])


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(pixels(data)[0, 0], RED)


def test_float_images_are_refused_because_their_white_is_unknown() -> None:
    with pytest.raises(BrokenExample, match="the file has 32-bit pixels"):
        pixels(encode(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


SAMPLINGS = {"444": 0, "422": 1, "420": 2}


@pytest.mark.parametrize(
    ("sampling", "progressive", "restart", "grey"),
    list(itertools.product(SAMPLINGS, [False, True], [0, 3], [False, True])),
)
def test_the_upper_part_of_a_jpeg_is_decoded_as_in_the_whole(
    sampling: str, progressive: bool, restart: int, grey: bool
) -> None:
    image = photo(90, 77).convert("L" if grey else "RGB")
    data = encode(
        image, "JPEG", subsampling=SAMPLINGS[sampling], progressive=progressive, restart_marker_blocks=restart
    )
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for bottom in (1, 8, 16, 17, 40, 63, 76, 77):
        np.testing.assert_array_equal(Encoded(data, "").pixels(3, bottom=bottom)[:bottom], whole[:bottom])
    np.testing.assert_array_equal(Encoded(data, "").pixels(3), whole)
    assert Encoded(data, "").pixels(3, shrink=4).shape == (20, 23, 3)


# --- what is refused ---


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels."""
    body = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    chunk = b"IHDR" + body
    header = b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return header + b"\0\0\0\x0aIDAT" + zlib.compress(b"")


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG that says it has so many pixels."""
    data = bytearray(encode(photo(), "JPEG"))
    header = decode.jpeg_header(bytes(data))
    assert header is not None
    at = header.height_offset
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("make", [png_of, jpeg_of])
@pytest.mark.parametrize("size", [(20_000, 20_000), (65_000, 65_000), (30_000, 4_000)])
def test_decompression_bombs_are_refused_by_name_before_they_are_decoded(make, size: tuple[int, int]) -> None:
    with pytest.raises(BrokenExample, match=r"^big\.img .*pixels.*[0-9]") as e:
        Encoded(make(*size), "big.img").pixels(3)
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_real_jpeg_of_400_megapixels_is_refused_by_name() -> None:
    data = encode(Image.new("L", (20_000, 20_000)), "JPEG")
    with pytest.raises(BrokenExample, match=r"big\.jpg is 20000x20000 pixels"):
        Encoded(data, "big.jpg").pixels(3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files_are_refused_by_name(kind: str) -> None:
    data = encode(photo(), kind)
    for keep in (0.1, 0.5, 0.9):
        with pytest.raises(BrokenExample, match=r"^the file is not a readable image: "):
            pixels(data[: int(len(data) * keep)])


def test_a_jpeg_of_random_bytes_never_ends_in_anything_but_pixels_or_a_name() -> None:
    whole = encode(photo(), "JPEG")
    rng, names = np.random.default_rng(0), set()
    for _ in range(200):
        data = bytearray(whole)
        for at in rng.integers(2, len(data), size=8):
            data[at] = rng.integers(256)
        try:
            assert pixels(bytes(data)).ndim == 3
        except BrokenExample as e:
            names.add(str(e)[:9])
    assert names <= {"the file "}
