"""What validation saw, in aggregates: what a server holds its requests against. Nothing of a single case."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of one number per case and channel: its quantiles over the cases, one entry per channel."""

    low: tuple[float, ...]  # 0.1 %
    median: tuple[float, ...]
    high: tuple[float, ...]  # 99.9 %


@dataclass(frozen=True, kw_only=True)
class InputReference:
    """One floating-point input, as the model is fed it.

    A channel is an entry of axis 0 of a case; all of a case is one channel where there are more than 16, or
    (in a vector of features) more than 1,024.
    """

    name: str
    channels: int
    mean: Spread  # of each case's mean over a channel
    std: Spread  # of each case's standard deviation over a channel; all 0 for a vector of features


@dataclass(frozen=True, kw_only=True)
class GroupSensitivity:
    """Of one demographic group: how many of its positives a variant found."""

    group: str  # "everyone", or "sex=female"
    positives: int
    found: int


@dataclass(frozen=True, kw_only=True)
class VariantReference:
    """What one variant answered; see `pastille.stats.confidence`."""

    variant: str
    cases: int
    edges: tuple[float, ...]  # (B + 1,) ascending, from 0 to 1; fewer than ten bins where values repeat
    shares: tuple[float, ...]  # (B,) of cases whose confidence lies in [edge, next edge); the last includes 1
    grid: tuple[float, ...]  # (101,) quantiles of the confidence at 0 %, 1 % ... 100 %
    sensitivity: tuple[GroupSensitivity, ...]  # "everyone" first; empty where there is no such thing


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Reference statistics of a bundle."""

    cases: int  # of validation that the inputs were looked at of
    inputs: tuple[InputReference, ...]
    variants: tuple[VariantReference, ...]  # none for tasks without probabilities of a decision

    def variant(self, name: str) -> VariantReference | None:
        """That of one variant, if there is one."""
        return next((v for v in self.variants if v.variant == name), None)
