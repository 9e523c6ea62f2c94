"""Whether the confidences of one variant are still spread as they were on validation."""

from __future__ import annotations

from typing import final

import numpy as np

from pastille.serve.watch import words
from pastille.serve.watch.snapshot import DriftView
from pastille.stats.drift_check import DriftCheck
from pastille.values.reference import VariantReference


@final
class Drift:
    """One variant; without a reference it only says so."""

    def __init__(self, variant: str, reference: VariantReference | None) -> None:
        self.variant = variant
        self._check = None if reference is None else DriftCheck(reference)

    def add(self, confidence: np.ndarray) -> None:
        """Look at more cases, ``(N,)``."""
        if self._check is not None:
            self._check.update(confidence)

    @property
    def alarm(self) -> bool:
        """Whether the last whole block of cases was too far off."""
        return self._check is not None and self._check.alarm

    def view(self) -> DriftView:
        """How it stands."""
        if self._check is None:
            return _without_reference(self.variant)
        found = self._check.finding()
        return DriftView(
            variant=self.variant,
            n=found.n,
            minimum=found.minimum,
            psi=found.psi,
            psi_limit=found.psi_limit,
            ks=found.ks,
            ks_limit=found.ks_limit,
            edges=found.edges,
            reference=found.reference,
            now=found.now,
            state=found.state,
            words=found.words,
        )


def _without_reference(variant: str) -> DriftView:
    return DriftView(
        variant=variant,
        n=0,
        minimum=0,
        psi=None,
        psi_limit=None,
        ks=None,
        ks_limit=None,
        edges=(),
        reference=(),
        now=(),
        state="not_enough_data",
        words=words.NO_REFERENCE,
    )
