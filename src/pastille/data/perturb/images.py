"""Images that were taken, moved or stored badly.

Each function takes ``(C, H, W)`` floats in [0, 1], a severity from 1 to 5 and a generator, and gives a new
array of the same shape and dtype, in [0, 1]. The kinds are those of ImageNet-C that occur on a ward; the
severities begin milder, since what is judged is a small difference between two models and not robustness as
such. Lengths are shares of the image, so that 28 and 512 pixels mean the same.

References:
    Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
    perturbations", ICLR 2019.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image
from scipy import ndimage

from pastille.data.perturb.perturbation import Perturbation, at, listed

_NOISE = (0.02, 0.04, 0.08, 0.12, 0.18)  # standard deviation
_BLUR = (0.004, 0.008, 0.012, 0.018, 0.025)  # standard deviation, of the shorter side
_BLUR_PIXELS = (0.3, 0.4, 0.5, 0.6, 0.8)  # at least; fewer would change nothing
_CONTRAST = (0.85, 0.7, 0.5, 0.35, 0.2)  # what is left
_BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
_JPEG = (80, 60, 40, 25, 10)  # quality
_ROTATION = (2.0, 4.0, 7.0, 11.0, 15.0)  # degrees
_OCCLUSION = (0.01, 0.02, 0.05, 0.1, 0.15)  # share of the area


def gaussian_noise(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Noise of a dark exposure."""
    grain = generator.standard_normal(image.shape, np.float32)
    return _limited(image + at(_NOISE, severity) * grain, image)


def gaussian_blur(image: np.ndarray, severity: int, _generator: np.random.Generator) -> np.ndarray:
    """A lens out of focus."""
    sigma = max(at(_BLUR, severity) * min(image.shape[1:]), at(_BLUR_PIXELS, severity))
    return _limited(ndimage.gaussian_filter(image, (0, sigma, sigma), mode="nearest"), image)


def contrast(image: np.ndarray, severity: int, _generator: np.random.Generator) -> np.ndarray:
    """A haze: every channel drawn towards its mean."""
    mean = image.mean(axis=(1, 2), keepdims=True)
    return _limited(mean + at(_CONTRAST, severity) * (image - mean), image)


def brightness(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Too much or too little light."""
    return _limited(image + _either_way(at(_BRIGHTNESS, severity), generator), image)


def jpeg(image: np.ndarray, severity: int, _generator: np.random.Generator) -> np.ndarray:
    """Lossy storage: three channels as colour, others one by one."""
    pixels = np.rint(255 * image).astype(np.uint8)
    quality = at(_JPEG, severity)
    if len(pixels) == 3:
        stored = _stored(pixels.transpose(1, 2, 0), quality).transpose(2, 0, 1)
    else:
        stored = np.stack([_stored(channel, quality) for channel in pixels])
    return _limited(stored / 255, image)


def rotation(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """A device held askew; what comes into view repeats the edge."""
    degrees = _either_way(at(_ROTATION, severity), generator)
    turned = ndimage.rotate(image, degrees, axes=(2, 1), reshape=False, order=1, mode="nearest")
    return _limited(turned, image)


def occlusion(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """A square in the way, of the image's mean colour."""
    height, width = image.shape[1:]
    side = max(1, round(math.sqrt(at(_OCCLUSION, severity) * height * width)))
    tall, wide = min(side, height), min(side, width)
    top, left = (int(generator.integers(0, room + 1)) for room in (height - tall, width - wide))
    covered = image.copy()
    covered[:, top : top + tall, left : left + wide] = image.mean(axis=(1, 2), keepdims=True)
    return covered


def _limited(perturbed: np.ndarray, image: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(perturbed, 0.0, 1.0), image.dtype)


def _either_way(size: float, generator: np.random.Generator) -> float:
    return size if generator.integers(2) else -size


def _stored(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


_ALL = (
    Perturbation(
        name="gaussian_noise",
        setting=f"standard deviation {listed(_NOISE)} of the range of values",
        function=gaussian_noise,
    ),
    Perturbation(
        name="gaussian_blur",
        setting=f"standard deviation {listed(_BLUR, percent=True)} of the shorter side, "
        f"at least {listed(_BLUR_PIXELS)} pixels",
        function=gaussian_blur,
    ),
    Perturbation(name="contrast", setting=f"reduced to {listed(_CONTRAST, percent=True)}", function=contrast),
    Perturbation(
        name="brightness",
        setting=f"up or down by {listed(_BRIGHTNESS, percent=True)} of the range of values",
        function=brightness,
    ),
    Perturbation(name="jpeg", setting=f"quality {listed(_JPEG)}", function=jpeg),
    Perturbation(
        name="rotation", setting=f"{listed(_ROTATION)} degrees, either way round", function=rotation
    ),
    Perturbation(
        name="occlusion",
        setting=f"a square over {listed(_OCCLUSION, percent=True)} of the area",
        function=occlusion,
    ),
)
IMAGES: Mapping[str, Perturbation] = MappingProxyType({one.name: one for one in _ALL})
