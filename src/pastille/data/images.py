"""Image files as arrays: decoded lazily, bounded, and by one code path for training and serving."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, final, overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pastille.data.dicom import read_dicom
from pastille.data.dicom_file import MAX_BYTES, is_dicom
from pastille.data.jpeg import check_scans
from pastille.data.normalize import normalized
from pastille.errors import DataError, PastilleError
from pastille.files import read_bounded
from pastille.references import one_line
from pastille.values import ImageDecoding, Normalization

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm"})
MAX_PIXELS = 64 << 20  # of one file, read from its header before anything is decoded
MAX_SIDE = 4096  # of the array that is asked for
MAX_CACHE_BYTES = 1 << 30

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decoding_for(size: int | tuple[int, int], channels: Literal[1, 3]) -> ImageDecoding:
    """How a recipe's ``data.size`` and ``data.channels`` ask for images.

    Args:
        size: Pixels, or (height, width).
        channels: 1 for grey, 3 for RGB.

    Raises:
        DataError: A side is below 1 or above `MAX_SIDE`.

    Example:
        >>> decoding_for(64, 3)
        ImageDecoding(height=64, width=64, channels=3, resize='bilinear')
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise DataError(f"data.size must be between 1 and {MAX_SIDE} pixels a side, got {height} x {width}")
    return ImageDecoding(height=height, width=width, channels=channels)


def decode_image(
    data: bytes | Path, decoding: ImageDecoding, normalization: Normalization | None
) -> np.ndarray:
    """Turn an image file into what the model is fed. The server decodes requests with this function.

    Orientation (EXIF) is applied, then grey or RGB, then the resize (antialiased), then ``/ 255``, then
    ``(x - mean) / std``. A DICOM file is windowed to 8 bits before all that, see `read_dicom`.

    Args:
        data: The file's bytes, or where it lies; PNG, JPEG, BMP, TIFF, WEBP or DICOM.
        decoding: Size and channels of the result.
        normalization: One mean and one standard deviation per channel, or None.

    Returns:
        ``(C, H, W)``, float32.

    Raises:
        DataError: It is missing, no image, truncated, has more than `MAX_PIXELS` pixels, several frames,
            or (if it is not DICOM) 16-bit or float pixels.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (8, 6), "white").save(file, "PNG")
        >>> decode_image(file.getvalue(), decoding_for(2, 1), None)
        array([[[1., 1.],
                [1., 1.]]], dtype=float32)
    """
    return normalized(scaled(decode_pixels(data, decoding)), normalization)


def decode_pixels(data: bytes | Path, decoding: ImageDecoding) -> np.ndarray:
    """Decode, orient, convert and resize; see `decode_image`.

    Returns:
        ``(C, H, W)``, uint8.

    Raises:
        DataError: As `decode_image`.
    """
    return noted_pixels(data, decoding)[0]


def noted_pixels(
    data: bytes | Path,
    decoding: ImageDecoding,
    *,
    limit: int | None = None,
    formats: Sequence[str] = FORMATS,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """As `decode_pixels`, with what should be known of the result: a DICOM file may lack its window.

    Args:
        data: The file's bytes, or where it lies.
        decoding: Size and channels of the result.
        limit: Pixels that a file may have, `MAX_PIXELS` if None; of DICOM, a limit of its own holds.
        formats: That are taken besides DICOM.

    Returns:
        ``(C, H, W)`` uint8, and warnings.

    Raises:
        DataError: As `decode_image`.
    """
    if isinstance(data, Path) and data.suffix.lower() == ".dcm":
        return _dicom_file(data, decoding)
    if isinstance(data, bytes) and is_dicom(data):
        image, warnings = read_dicom(data)
        return _resized(image, decoding), warnings
    return _decoded(data, decoding, MAX_PIXELS if limit is None else limit, formats), ()


def _dicom_file(path: Path, decoding: ImageDecoding) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        image, warnings = read_dicom(read_bounded(path, MAX_BYTES, what="DICOM file"))
    except PastilleError as error:
        raise DataError(f"image {path}: {error}") from None
    return _resized(image, decoding), warnings


def _decoded(data: bytes | Path, decoding: ImageDecoding, limit: int, formats: Sequence[str]) -> np.ndarray:
    what = f"image {data}" if isinstance(data, Path) else f"image of {len(data)} bytes"
    if isinstance(data, bytes):
        check_scans(data)
    source = data if isinstance(data, Path) else io.BytesIO(data)
    try:
        with Image.open(source, formats=tuple(formats)) as image:
            _require_decodable(image, what, limit)
            return _resized(image, decoding)
    except DataError:
        raise
    except _BOMBS as error:
        size = str(error).partition(" exceeds")[0]
        raise DataError(f"{what} is too large: {size}; at most {limit} pixels are decoded") from None
    except FileNotFoundError:
        raise DataError(f"{what} is missing") from None
    except Exception as error:  # Pillow's decoders fail on hostile files with errors of every type
        # Of what is no image at all, Pillow names the address in memory.
        why = "" if isinstance(error, UnidentifiedImageError) else f": {one_line(error)}"
        raise DataError(
            f"{what} cannot be decoded, it must be a whole file of {', '.join(formats)}{why}"
        ) from None


def _require_decodable(image: Image.Image, what: str, limit: int) -> None:
    if image.width * image.height > limit:
        raise DataError(
            f"{what} is too large: {image.width} x {image.height} is {image.width * image.height} pixels; "
            f"at most {limit} pixels are decoded"
        )
    # 16-bit and float pixels need a window, which only the user knows; Pillow would clip them at 255.
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{what} has 16-bit or float pixels (mode {image.mode}); "
            "choose a window and store it with 8 bits a channel"
        )
    # A phone's JPEG may carry a preview as its second frame (MPO); elsewhere a frame would be lost.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise DataError(f"{what} holds several frames; store one image per file")


def _resized(image: Image.Image, decoding: ImageDecoding) -> np.ndarray:
    upright = ImageOps.exif_transpose(image)
    opaque = upright.convert("RGBA") if upright.mode in ("P", "PA") else upright
    plain = opaque.convert("L" if decoding.channels == 1 else "RGB")
    small = plain.resize((decoding.width, decoding.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(small).reshape(decoding.height, decoding.width, decoding.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (C, H, W)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Pixels of 8 bits on [0, 1], float32."""
    return pixels.astype(np.float32) / np.float32(255)


@final
class PixelCache:
    """Decoded pixels that are kept in memory, up to a limit; then no more are added.

    Nothing is evicted: epochs go through all images in turn, where evicting the oldest would miss every
    time. Threads may share it. Pickled, it arrives empty.

    Example:
        >>> cache = PixelCache(limit_bytes=10)
        >>> cache.put("small", np.zeros(8, np.uint8)), cache.put("too much", np.zeros(8, np.uint8))
        (None, None)
        >>> cache.get("small") is None, cache.get("too much") is None
        (False, True)
    """

    def __init__(self, limit_bytes: int = MAX_CACHE_BYTES) -> None:
        self.limit_bytes: Final = limit_bytes
        self._kept: dict[object, np.ndarray] = {}
        self._used_bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[PixelCache], tuple[int]]:
        return PixelCache, (self.limit_bytes,)

    @property
    def used_bytes(self) -> int:
        """How much it holds."""
        return self._used_bytes

    def get(self, key: object) -> np.ndarray | None:
        """The pixels put there before, read-only, or None."""
        return self._kept.get(key)

    def put(self, key: object, pixels: np.ndarray) -> None:
        """Keep ``pixels`` if they still fit; they become read-only."""
        with self._lock:
            if key in self._kept or self._used_bytes + pixels.nbytes > self.limit_bytes:
                return
            pixels.flags.writeable = False
            self._kept[key] = pixels
            self._used_bytes += pixels.nbytes


@final
class Images(Sequence[np.ndarray]):
    """Image files as a sequence of arrays, each decoded when it is first asked for.

    Args:
        paths: One file per image.
        decoding: Size and channels of every array.
        normalization: Applied last; None leaves pixels in [0, 1].
        cache: Where decoded pixels stay; one of its own if None.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        decoding: ImageDecoding,
        normalization: Normalization | None = None,
        *,
        cache: PixelCache | None = None,
    ) -> None:
        self.paths: Final = tuple(paths)
        self.decoding: Final = decoding
        self.normalization: Final = normalization
        self.cache: Final = PixelCache() if cache is None else cache

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> Images: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | Images:
        """One image, ``(C, H, W)`` float32; or, for a slice, fewer images.

        Raises:
            DataError: The file cannot be decoded; see `decode_image`.
        """
        if isinstance(index, slice):
            return Images(self.paths[index], self.decoding, self.normalization, cache=self.cache)
        return normalized(scaled(self._pixels(self.paths[index])), self.normalization)

    def with_normalization(self, normalization: Normalization | None) -> Images:
        """The same images, sharing the cache, normalized otherwise."""
        return Images(self.paths, self.decoding, normalization, cache=self.cache)

    def _pixels(self, path: Path) -> np.ndarray:
        key = (path, self.decoding)
        pixels = self.cache.get(key)
        if pixels is None:
            pixels = decode_pixels(path, self.decoding)
            self.cache.put(key, pixels)
        return pixels
