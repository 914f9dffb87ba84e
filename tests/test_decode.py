from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data.decode import MAX_PIXELS, decode
from harness.errors import DataError


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(height: int = 12, width: int = 20) -> Image.Image:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def png_header(width: int, height: int) -> bytes:
    """A valid PNG start that promises pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_rgb_file_keeps_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(gradient()))
    pixels = decode(path, "a.png")
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, np.asarray(gradient()))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_each_format_decodes(format: str) -> None:
    assert decode(encoded(gradient(), format), format).shape == (12, 20, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_the_exif_orientation_is_applied_once(orientation: int, format: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(gradient(), format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(decode(content, "x"), np.asarray(expected.convert("RGB")))


def test_orientation_6_swaps_the_sides_of_a_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(gradient(), "JPEG", exif=exif), "x").shape == (20, 12, 3)


def test_damaged_exif_does_not_refuse_a_sound_image() -> None:
    content = encoded(gradient(), "JPEG", exif=b"Exif\x00\x00garbage")
    assert decode(content, "x").shape == (12, 20, 3)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_range(format: str) -> None:
    ramp = np.linspace(0, 65535, 256 * 4).reshape(4, 256).round().astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(ramp), format), "x")
    assert np.array_equal(pixels[..., 0], np.round(ramp / 257).astype(np.uint8))
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert abs(pixels.mean() - 127.5) < 1


def test_32_bit_values_are_refused() -> None:
    content = encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF")
    with pytest.raises(DataError, match="cannot be read") as caught:
        decode(content, "x")
    assert "32-bit" in caught.value.why


def grey_tiff(bits: int, meaning: int) -> bytes:
    """A TIFF of 4 x 4 pixels, all bits set."""
    data = b"\xff" * (16 * bits // 8)
    tags = {256: 4, 257: 4, 258: bits, 259: 1, 262: meaning, 273: 122, 277: 1, 278: 4, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize(("bits", "meaning"), [(12, 1), (16, 0)])
def test_grey_tiffs_whose_range_pillow_does_not_tell_are_refused(bits: int, meaning: int) -> None:
    assert decode(grey_tiff(16, 1), "x").min() == 255
    with pytest.raises(DataError, match="cannot be read") as caught:
        decode(grey_tiff(bits, meaning), "x")
    assert "TIFF of 12 bit, or of 16 bit where zero is white" in caught.value.why


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_put_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    if mode == "P":
        flat = Image.new("P", (4, 4), 1)
        flat.paste(0, (0, 0, 2, 4))
        flat.putpalette([0, 0, 0, 200, 10, 10])
        content = encoded(flat, transparency=1)
    else:
        content = encoded(image.convert(mode))
    pixels = decode(content, "x")
    assert (pixels[:, :2] == 0).all()
    assert (pixels[:, 2:] == 255).all()


def test_half_transparent_black_is_grey() -> None:
    pixels = decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))), "x")
    assert abs(int(pixels[0, 0, 0]) - 127) <= 1


def test_cmyk_is_converted() -> None:
    content = encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")
    red, green, blue = decode(content, "x")[0, 0]
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert decode(content, "x")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"not an image at all", "no image in a known format"),
        (encoded(gradient(200, 200), "JPEG")[:-1500], "truncated"),
        (encoded(gradient(200, 200))[:400], ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image in a known format"),
    ],
)
def test_a_bad_file_is_a_data_error_that_names_it(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        decode(path, "cat/bad.jpg")
    assert caught.value.where == "cat/bad.jpg"
    assert why in caught.value.why
    assert caught.value.exit_code == 5


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg"):
        decode(tmp_path / "gone.jpg", "gone.jpg")


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_before_decoding_and_without_a_warning(side: int) -> None:
    assert side * side > MAX_PIXELS
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(DataError) as caught:
            decode(png_header(side, side), "bomb.png")
    assert "pixels" in caught.value.why
    assert not heard


def test_grey_pixels_become_rgb_and_are_copied() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    pixels = decode(grey, "x")
    assert pixels.shape == (2, 3, 3)
    assert (pixels == grey[..., None]).all()
    rgb = np.zeros((2, 2, 3), dtype=np.uint8)
    decode(rgb, "x")[:] = 9
    assert not rgb.any()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), dtype=np.float32),
        np.zeros((3, 4, 4), dtype=np.uint8),
        np.zeros((4, 0, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
    ],
)
def test_pixels_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(DataError):
        decode(pixels, "x")
