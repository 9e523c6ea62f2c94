"""The sealed product of a run: write it, check it, open it. Needs neither torch nor onnx."""

from __future__ import annotations

from pastille.bundle.choosing import choose_cases
from pastille.bundle.golden import Golden, Replay, answer_cases
from pastille.bundle.load import Answer, Bundle, load_bundle
from pastille.bundle.manifest import Manifest, Variant, VariantName, read_manifest
from pastille.bundle.stored import onnx_file
from pastille.bundle.verify import Verification, verify
from pastille.bundle.write import BundleParts, VariantPart, write_bundle

__all__ = [
    "Answer",
    "Bundle",
    "BundleParts",
    "Golden",
    "Manifest",
    "Replay",
    "Variant",
    "VariantName",
    "VariantPart",
    "Verification",
    "answer_cases",
    "choose_cases",
    "load_bundle",
    "onnx_file",
    "read_manifest",
    "verify",
    "write_bundle",
]
