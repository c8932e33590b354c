"""Bytes of images to square arrays: the recipe, its corner cases, and files that are damaged or hostile."""

import io
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image

from equiscale.data.decoding import decode_all, decode_image
from equiscale.errors import DataError


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (10, 10), colour)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_images_of_the_right_size_are_not_resampled(kind: str) -> None:
    image = noise(96, 96)
    options = {"lossless": True} if kind == "webp" else {}
    found = decode_image(encoded(image, kind, **options), 96)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("height", "width", "resized", "corner"),
    [
        (50, 100, (40, 20), (10, 0)),
        (101, 50, (20, 40), (0, 10)),
        (30, 31, (21, 20), (0, 0)),
        (7, 5, (20, 28), (0, 4)),
    ],
)
def test_the_shorter_side_is_bicubic_and_the_middle_is_kept(
    height: int, width: int, resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = noise(height, width)
    left, top = corner
    expected = image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + 20, top + 20))
    found = decode_image(encoded(image), 20)
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), (255, 255, 255)),
        (flat("I;16", 0x4DFF), (77, 77, 77)),
        (flat("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (flat("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (flat("LA", (100, 0)), (255, 255, 255)),
        (flat("RGBA", (0, 0, 0, 51)), (204, 204, 204)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_kind_of_pixel_becomes_rgb(image: Image.Image, expected: tuple[int, ...]) -> None:
    found = decode_image(encoded(image), 5)
    assert [int(channel.min()) for channel in found] == [int(channel.max()) for channel in found]
    assert tuple(found[:, 0, 0].tolist()) == expected


def test_palettes_transparent_or_not() -> None:
    image = Image.new("P", (10, 10), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    assert decode_image(encoded(image), 5)[:, 0, 0].tolist() == [200, 100, 50]
    assert decode_image(encoded(image, transparency=1), 5)[:, 0, 0].tolist() == [255, 255, 255]


def test_cmyk_is_converted() -> None:
    found = decode_image(encoded(flat("CMYK", (0, 255, 255, 0)), "jpeg", quality=100), 5)[:, 0, 0]
    assert found[0] > 240
    assert found[1:].max() < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    image = noise(30, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    assert np.array_equal(decode_image(encoded(stored, exif=exif), 20), decode_image(encoded(image), 20))


def exif_with(*tags: tuple[int, int, int, bytes]) -> bytes:
    """Orientation 6 and other tags, as bytes of number, type, count and value: right ones or not."""
    entries = [(0x0112, 3, 1, b"\6\0\0\0"), *tags]
    told = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + told + bytes(36)


@pytest.mark.parametrize(
    "tag",
    [
        (0x0128, 1, 1, bytes(4)),
        (0x0131, 5, 1, bytes(4)),
        (0x011A, 6, 1, b"\xff" * 4),
        (0x011A, 2, 1, bytes(4)),
    ],
    ids=["struct.error", "AttributeError", "out of range", "TypeError"],
)
def test_tags_beside_the_orientation_may_be_damaged(tag: tuple[int, int, int, bytes]) -> None:
    """Each made Pillow's own turning fail with another error when it wrote the other tags anew."""
    content = encoded(noise(20, 20), "jpeg", exif=exif_with(tag))
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1)
    assert np.array_equal(decode_image(content, 20), expected)


def test_spoilt_bytes_give_an_image_or_one_kind_of_error() -> None:
    draw = np.random.default_rng(0)
    exif = exif_with((0x011A, 5, 1, b"\x26\0\0\0"), (0x0131, 2, 1, bytes(4)))
    wholes = [encoded(noise(8, 8), kind, exif=exif) for kind in ("jpeg", "png", "webp")]
    refused = 0
    for number in range(600):
        content = np.frombuffer(wholes[number % 3], np.uint8).copy()
        places = draw.integers(0, min(120, len(content)), 3)
        content[places] = draw.integers(0, 256, 3)
        try:
            assert decode_image(content.tobytes(), 8).shape == (3, 8, 8)
        except DataError:
            refused += 1
    assert 100 < refused < 500


@pytest.mark.parametrize(("height", "width"), [(20_000, 1), (1, 20_000)])
def test_images_so_narrow_that_scaling_makes_them_huge_are_refused(height: int, width: int) -> None:
    content = encoded(Image.new("L", (width, height), 9))
    message = rf"so narrow \({width}×{height}\) that it has more than the 89478485 pixels .* side has 96"
    with pytest.raises(DataError, match=message):
        decode_image(content, 96)
    assert decode_image(content, 4).min() == 9


def test_too_little_memory_is_a_failure_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(*_: object) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", resize)
    failures = decode_all([lambda: encoded(noise(9, 9))], np.zeros((1, 3, 4, 4), np.uint8))
    assert failures == {0: "larger than the free memory"}


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that announce a huge image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


WHOLE = encoded(noise(60, 60), "jpeg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JPEG, PNG or WebP image"),
        (b"plain text", "no JPEG, PNG or WebP image"),
        (encoded(noise(9, 9), "gif"), "no JPEG, PNG or WebP image"),
        (WHOLE[: len(WHOLE) // 2], "damaged: image file is truncated"),
        (encoded(noise(60, 60), "webp")[:600], "damaged: "),
        (encoded(noise(60, 60))[:3000], "damaged: "),
        (png_of_size(8192, 8193), "8192×8193, more than 67108864 pixels; make it smaller"),
        (png_of_size(8192, 4096), "damaged: "),
        (png_of_size(9_500, 9_500), "more than the 89478485 pixels that Pillow allows"),
        (png_of_size(100_000, 100_000), "more than the 89478485 pixels that Pillow allows"),
    ],
)
def test_damaged_and_hostile_files_are_told(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_image(content, 20)


def test_many_at_once_in_their_order_with_the_failures_named() -> None:
    contents = [encoded(noise(24, 30, seed)) for seed in range(150)]
    contents[70] = b"plain text"
    contents[71] = png_of_size(9_500, 9_500)
    out = np.full((150, 3, 16, 16), 9, np.uint8)
    failures = decode_all([partial(bytes, content) for content in contents], out)
    assert list(failures) == [70, 71]
    assert failures[70] == "no JPEG, PNG or WebP image"
    assert not out[70:72].any()
    for index in (0, 63, 64, 149):
        assert np.array_equal(out[index], decode_image(contents[index], 16))


def test_a_file_that_cannot_be_read_is_a_failure() -> None:
    def reader() -> bytes:
        raise PermissionError("no")

    assert decode_all([reader], np.zeros((1, 3, 4, 4), np.uint8)) == {0: "no"}


def test_images_of_many_pixels_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("unpacked"))
    with pytest.raises(DataError, match="more than 67108864 pixels"):
        decode_image(png_of_size(9_450, 9_450), 20)
