"""Signals that were recorded badly.

Each function takes ``(C, T)`` floats, a severity from 1 to 5 and a generator, and gives a new array of the
same shape and dtype. Sizes are relative to each lead's own standard deviation, so that the unit of the signal
does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from pastille.data.perturb.perturbation import Perturbation, at, listed

_WANDER = (0.1, 0.2, 0.4, 0.7, 1.0)  # amplitude, in standard deviations of the lead
_NOISE = (0.05, 0.1, 0.2, 0.35, 0.5)  # standard deviation, in those of the lead
_DROPOUT = (0.05, 0.1, 0.2, 0.35, 0.5)  # share of all samples of all leads
_GAIN = (0.05, 0.1, 0.2, 0.3, 0.5)
_SHIFT = (0.01, 0.02, 0.04, 0.07, 0.1)  # share of the length


def baseline_wander(signal: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Breathing or a loose electrode: one slow wave, half a cycle to three, under all leads."""
    cycles, phase = generator.uniform(0.5, 3.0), generator.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * cycles * np.linspace(0, 1, signal.shape[1]) + phase)  # (T,)
    return np.asarray(signal + at(_WANDER, severity) * _spread(signal) * wave, signal.dtype)


def noise(signal: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """White noise, of its own in every lead."""
    added = at(_NOISE, severity) * _spread(signal) * generator.standard_normal(signal.shape)
    return np.asarray(signal + added, signal.dtype)


def lead_dropout(signal: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Leads that come off: whole ones, taken at random, and a stretch of one more, flat at their mean."""
    leads, length = signal.shape
    lost = max(1, round(at(_DROPOUT, severity) * leads * length))  # samples
    whole, rest = divmod(lost, length)
    order = generator.permutation(leads)
    start = int(generator.integers(0, length - rest + 1))
    flat = np.zeros(signal.shape, bool)
    flat[order[:whole]] = True
    flat[order[whole : whole + 1], start : start + rest] = True
    return np.asarray(np.where(flat, signal.mean(axis=1, keepdims=True), signal), signal.dtype)


def gain(signal: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """An amplifier set too high or too low, for all leads."""
    mean = signal.mean(axis=1, keepdims=True)
    factor = 1 + at(_GAIN, severity) * (1 if generator.integers(2) else -1)
    return np.asarray(mean + factor * (signal - mean), signal.dtype)


def time_shift(signal: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """A recording that began too early or too late; what is missing repeats the edge."""
    length = signal.shape[1]
    by = max(1, round(at(_SHIFT, severity) * length)) * (1 if generator.integers(2) else -1)
    source = np.clip(np.arange(length) - by, 0, length - 1)
    return np.asarray(signal[:, source])


def _spread(signal: np.ndarray) -> np.ndarray:
    return np.asarray(signal.std(axis=1, keepdims=True))  # (C, 1)


_OF_LEAD = "standard deviations of the lead"
_ALL = (
    Perturbation(
        name="baseline_wander", setting=f"amplitude {listed(_WANDER)} {_OF_LEAD}", function=baseline_wander
    ),
    Perturbation(name="noise", setting=f"white, {listed(_NOISE)} {_OF_LEAD}", function=noise),
    Perturbation(
        name="lead_dropout",
        setting=f"{listed(_DROPOUT, percent=True)} of all samples flat, whole leads first",
        function=lead_dropout,
    ),
    Perturbation(name="gain", setting=f"too high or too low by {listed(_GAIN, percent=True)}", function=gain),
    Perturbation(
        name="time_shift",
        setting=f"earlier or later by {listed(_SHIFT, percent=True)} of the length",
        function=time_shift,
    ),
)
SIGNALS: Mapping[str, Perturbation] = MappingProxyType({one.name: one for one in _ALL})
