"""The demonstrations make bundles that a newcomer can send something to."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pastille.data.prepare import prepare
from pastille.demos.digits.data import splits
from pastille.values import TensorSpec


def test_a_picture_of_a_digit_becomes_what_the_model_was_trained_on() -> None:
    found = splits()
    assert found.preprocessing is not None
    spec = TensorSpec(name="input", shape=(1, 8, 8), dtype="float32")
    for pixels in np.asarray(found.test.inputs)[:10]:
        file = io.BytesIO()
        Image.fromarray(np.round(pixels[0] * 255).astype(np.uint8)).save(file, "PNG")
        ready = prepare(file.getvalue(), found.preprocessing, (spec,), folder=Path())
        np.testing.assert_allclose(ready.inputs["input"][0], pixels, atol=0.5 / 255 + 1e-6)
