from __future__ import annotations

import contextlib
import io
import pickle
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data_samples import GREY_8, RGB_8, image_bytes, noise, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pastille.data import images
from pastille.data.images import Images, PixelCache, decode_image, decoding_for
from pastille.errors import DataError
from pastille.values import ImageDecoding, Normalization

HALF = Normalization(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises an image that its few bytes do not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_decodes_to_channels_height_width_in_0_1() -> None:
    image = Image.new("RGB", (4, 2), (255, 0, 51))
    array = decode_image(image_bytes(image), ImageDecoding(height=2, width=4, channels=3), None)
    assert array.shape == (3, 2, 4)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array[:, 0, 0], [1.0, 0.0, 0.2])


def test_normalizes_after_scaling() -> None:
    array = decode_image(image_bytes(Image.new("RGB", (8, 8), "white")), RGB_8, HALF)
    np.testing.assert_allclose(array[:, 3, 3], [2.0, 1.0, 0.5])


def test_applies_exif_orientation() -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the left half becomes the upper one
    file = image_bytes(image, "JPEG", exif=exif, quality=95)
    array = decode_image(file, ImageDecoding(height=8, width=4, channels=1), None)
    assert array[0, :4].min() > 0.9
    assert array[0, 4:].max() < 0.1


def test_resizing_averages_so_that_fine_lines_do_not_alias() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    array = decode_image(image_bytes(Image.fromarray(stripes)), GREY_8, None)
    np.testing.assert_allclose(array, 0.5, atol=0.05)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_mode_becomes_grey_or_rgb(mode: str, channels: int) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    file = image_bytes(Image.new("RGB", (8, 8), "white").convert(mode), kind)
    array = decode_image(file, ImageDecoding(height=3, width=5, channels=1 if channels == 1 else 3), None)
    assert array.shape == (channels, 3, 5)
    np.testing.assert_allclose(array, 1.0, atol=0.01)


def test_a_palette_with_transparency_decodes_without_a_warning() -> None:
    image = Image.new("RGB", (8, 8), "red").convert("P")
    assert decode_image(image_bytes(image, transparency=b"\x00\xff"), RGB_8, None).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_path_and_its_bytes_decode_alike(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(image_bytes(noise(1, (13, 9)), kind))
    np.testing.assert_array_equal(
        decode_image(path, RGB_8, HALF), decode_image(path.read_bytes(), RGB_8, HALF)
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cut"
    whole = image_bytes(noise(1, (64, 64)), kind)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"image \S+/cut cannot be decoded, it must be a whole file of PNG, JPEG"
    ):
        decode_image(path, RGB_8, None)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_image_raise_only_our_error(data: bytes) -> None:
    with pytest.raises(DataError, match=f"image of {len(data)} bytes cannot be decoded"):
        decode_image(data, RGB_8, None)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_file_decodes_or_raises_only_our_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "BMP", "WEBP"]))
    file = bytearray(image_bytes(noise(3), kind))
    for at in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=4)):
        file[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        assert decode_image(bytes(file), RGB_8, None).shape == (3, 8, 8)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image \S+/none.png is missing"):
        decode_image(tmp_path / "none.png", RGB_8, None)


def test_a_format_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(DataError, match="must be a whole file of PNG, JPEG, BMP, TIFF, WEBP"):
        decode_image(image_bytes(noise(1), "GIF"), RGB_8, None)


def test_a_bomb_is_refused_by_its_header_with_size_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(8200, 8200))
    expected = "bomb.png is too large: 8200 x 8200 is 67240000 pixels; at most 67108864 pixels are decoded"
    with pytest.raises(DataError, match=re.escape(expected)):
        decode_image(path, RGB_8, None)


@pytest.mark.parametrize("side", [12_000, 60_000])  # above where Pillow warns, and where it refuses
def test_a_bomb_that_pillow_stops_is_refused_alike(side: int) -> None:
    expected = f"is too large: Image size ({side * side} pixels); at most 67108864 pixels are decoded"
    with pytest.raises(DataError, match=re.escape(expected)):
        decode_image(huge_png(side, side), RGB_8, None)


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_pixels_that_need_a_window_are_refused_not_clipped(mode: str) -> None:
    with pytest.raises(DataError, match=r"has 16-bit or float pixels \(mode .*\); choose a window"):
        decode_image(image_bytes(Image.new(mode, (8, 8)), "TIFF"), RGB_8, None)


def test_several_frames_are_refused() -> None:
    file = image_bytes(noise(1), "TIFF", save_all=True, append_images=[noise(2)])
    with pytest.raises(DataError, match="holds several frames; store one image per file"):
        decode_image(file, RGB_8, None)


@pytest.mark.parametrize("size", [0, -1, 5000, (64, 0)])
def test_a_size_that_cannot_be_is_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(
        DataError, match=r"data.size must be between 1 and 4096 pixels a side, got -?\d+ x -?\d+"
    ):
        decoding_for(size, 3)


def test_height_comes_first() -> None:
    assert decoding_for((3, 5), 1) == ImageDecoding(height=3, width=5, channels=1)


def test_images_equal_decode_image_first_and_from_the_cache(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    found = Images([tmp_path / "a.png", tmp_path / "b.png"], RGB_8, HALF)
    expected = decode_image(tmp_path / "b.png", RGB_8, HALF)
    np.testing.assert_array_equal(found[1], expected)
    (tmp_path / "b.png").unlink()
    np.testing.assert_array_equal(found[1], expected)
    np.testing.assert_array_equal(found[-1], expected)
    assert len(found) == 2


def test_changing_a_returned_array_leaves_the_cache_alone(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    found = Images([tmp_path / "a.png"], RGB_8)
    before = found[0].copy()
    found[0][:] = 7
    np.testing.assert_array_equal(found[0], before)


def test_a_slice_and_another_normalization_share_the_cache(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    found = Images([tmp_path / "a.png", tmp_path / "b.png"], RGB_8)
    plain = found[1]
    (tmp_path / "b.png").unlink()
    (last,) = found[1:].with_normalization(HALF)
    np.testing.assert_allclose(last[0], (plain[0] - 0.5) / 0.25)


def test_the_cache_stops_at_its_limit_and_keeps_what_it_has(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    write_images(tmp_path, names)
    cache = PixelCache(limit_bytes=2 * 3 * 8 * 8)
    found = Images([tmp_path / name for name in names], RGB_8, cache=cache)
    assert [image.shape for image in found] == [(3, 8, 8)] * 3
    assert cache.used_bytes == cache.limit_bytes
    assert cache.get((tmp_path / "a.png", RGB_8)) is not None
    assert cache.get((tmp_path / "c.png", RGB_8)) is None


def test_a_shared_cache_keeps_sizes_apart(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    cache = PixelCache()
    shapes = [Images([tmp_path / "a.png"], size, cache=cache)[0].shape for size in (RGB_8, GREY_8)]
    assert shapes == [(3, 8, 8), (1, 8, 8)]


def test_pickled_images_arrive_without_their_pixels(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    found = Images([tmp_path / "a.png"], RGB_8, HALF)
    expected = found[0]
    again = pickle.loads(pickle.dumps(found))
    assert again.cache.used_bytes == 0
    np.testing.assert_array_equal(again[0], expected)


def test_threads_may_share_images(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(8)]
    write_images(tmp_path, names)
    found = Images([tmp_path / name for name in names], RGB_8)
    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(lambda i: float(found[i % 8].sum()), range(64)))
    assert sums == sums[:8] * 8
    assert found.cache.used_bytes == 8 * 3 * 8 * 8


def test_an_image_is_not_read_before_it_is_asked_for(tmp_path: Path) -> None:
    assert len(Images([tmp_path / "none.png"], RGB_8)) == 1


def test_symlinks_are_followed(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    followed = decode_image(tmp_path / "link.png", RGB_8, None)
    assert np.array_equal(followed, decode_image(tmp_path / "a.png", RGB_8, None))


def test_the_limit_holds_for_what_pillow_would_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(DataError, match="8 x 8 is 64 pixels; at most 63"):
        decode_image(io.BytesIO(image_bytes(noise(1))).getvalue(), RGB_8, None)
