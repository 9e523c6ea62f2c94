"""The model files of a bundle, as they are stored and as the runtime takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pastille.bundle.manifest import Variant
from pastille.runtime.packed import unpacked


@contextmanager
def onnx_file(directory: Path, variant: Variant) -> Iterator[Path]:
    """The ONNX file of a variant, for as long as it is needed.

    Args:
        directory: The bundle; its hashes were compared.
        variant: Of its manifest.

    Yields:
        The file itself, or a temporary one where it is stored packed.

    Raises:
        IntegrityError: It is packed, and does not hold what the manifest says.
        OutputError: There is no room to unpack it.
    """
    path = directory / variant.file
    if variant.unpacked is None:
        yield path
        return
    held = variant.unpacked
    with unpacked(path, size_bytes=held.size_bytes, sha256=held.sha256) as file:
        yield file
