"""Evidence that a rate is beyond its limit: looked at after every case, with no more false alarms for it.

A bettor who starts with 1 and bets against "the rate is at most the limit" will, if that is so, ever hold
100 with a chance of at most 1 %, however long the bets go on (Ville, 1939). What the bettor holds is the
evidence. It needs no window and no sample size chosen beforehand.

A bettor who lost nearly all in a long calm would take as long to notice a change. So a tenth of the first
stake is held back and spread over the first `HORIZON` cases, and the same is added in each such stretch
afterwards: the evidence of a change that begins late starts from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

HORIZON = 5000  # cases over which the first stake is spent
HELD_BACK = 0.1  # of the first stake: what every `HORIZON` cases bring afresh
_NODES = 64
_PRIOR = 9.0  # Beta(1, 9): a rate of 0.1 is expected, small ones are likelier
_MOST = 1e250  # evidence beyond it is not told apart
_LOG_MOST = 600.0  # of what one update may multiply it by; its exponential is still finite


@dataclass(frozen=True, kw_only=True, eq=False)
class Bets:
    """On which rates beyond the limit how much is staked; see `bets_beyond`."""

    weights: np.ndarray  # (R,), sum 1
    log_yes: np.ndarray  # (R,) by what a case with the property multiplies a stake
    log_no: np.ndarray  # (R,) and one without


def bets_beyond(limit: float) -> Bets:
    """Stakes spread over the rates beyond a limit as a Beta(1, 9) distribution that is cut off there.

    The integral over rates is a sum over 64 of them, more of them close to the limit. Any such sum is
    itself a bet that cannot be won if the limit holds; that it is close to the integral is for power.

    Args:
        limit: Rate that is still permitted, in ``(0, 1)``.

    Raises:
        ValueError: If ``limit`` is out of range.

    Example:
        >>> float(bets_beyond(0.05).weights.sum().round(9))
        1.0
    """
    if not 0 < limit < 1:
        raise ValueError(f"limit must be in (0, 1), got {limit}")
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    part = (nodes + 1) / 2
    rates = limit + (1 - limit) * part**2  # dense near the limit, where long runs look
    density = weights * part * (1 - rates) ** (_PRIOR - 1)
    return Bets(
        weights=density / density.sum(),
        log_yes=np.log(rates / limit),
        log_no=np.log((1 - rates) / (1 - limit)),
    )


def played(
    stakes: np.ndarray, bets: Bets, yes: int | np.ndarray, n: int, *, fresh: float = HELD_BACK / HORIZON
) -> np.ndarray:
    """What the stakes have become after some more cases.

    Args:
        stakes: ``(..., R)`` before them.
        bets: On what they are.
        yes: How many of the cases have the property; ``(...,)`` for many runs at once.
        n: How many cases; all are looked at together, and the stakes are added before them.
        fresh: Stake that each case brings.

    Returns:
        ``(..., R)``.
    """
    hits = np.asarray(yes)[..., None]
    with np.errstate(under="ignore", over="ignore"):  # a stake is lost, or more than `_MOST`
        growth = np.exp(np.minimum(hits * bets.log_yes + (n - hits) * bets.log_no, _LOG_MOST))
        return np.asarray(np.minimum((stakes + fresh * n * bets.weights) * growth, _MOST))


def played_share(
    stakes: np.ndarray, bets: Bets, share: float, *, fresh: float = HELD_BACK / HORIZON
) -> np.ndarray:
    """What the stakes have become after one more request, of whose cases a share has the property.

    Each bet is on the share itself: what it pays is linear in it, so its expectation is that of the mean
    share, whatever the cases of a request have in common.

    Args:
        stakes: ``(R,)`` before it.
        bets: On what they are.
        share: In ``[0, 1]``.
        fresh: Stake that it brings.

    Returns:
        ``(R,)``.
    """
    growth = share * np.exp(bets.log_yes) + (1 - share) * np.exp(bets.log_no)
    return np.asarray(np.minimum((stakes + fresh * bets.weights) * growth, _MOST))


def held_back(n: int) -> float:
    """What is left of the first stake after ``n`` cases, not yet bet.

    Example:
        >>> held_back(0), held_back(2500), held_back(9000)
        (0.1, 0.05, 0.0)
    """
    return HELD_BACK * max(0.0, 1 - n / HORIZON)


@final
class RateAlarm:
    """Raises an alarm once it is shown that a rate is beyond its limit.

    While no case is likelier than the limit to have the property, whatever came before it, the chance of
    an alarm within the first `HORIZON` cases is at most ``significance``, and each further `HORIZON` cases
    add at most a tenth of that. Cases that come together and may be alike, such as the slices of one scan,
    are given to `update_together`, and count as one.

    Args:
        limit: Rate that is still permitted, in ``(0, 1)``.
        significance: Chance of a false alarm, in ``(0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> alarm = RateAlarm(0.05)
        >>> alarm.update(0, n=200)
        >>> alarm.alarm, alarm.evidence < 1
        (False, True)
        >>> alarm.update(10, n=20)
        >>> alarm.alarm
        True

    References:
        Ville, "Étude critique de la notion de collectif", 1939; Howard et al., "Time-uniform, nonparametric,
        nonasymptotic confidence sequences", Annals of Statistics 49, 2021; Shin, Ramdas and Rinaldo,
        "E-detectors", New England Journal of Statistics in Data Science 2, 2024 (stakes that start anew).
    """

    def __init__(self, limit: float, significance: float = 0.01) -> None:
        if not 0 < significance < 1:
            raise ValueError(f"significance must be in (0, 1), got {significance}")
        self._bets = bets_beyond(limit)
        self.limit = limit
        self.alarm_at = 1 / significance
        self.reset()

    def reset(self) -> None:
        """Start anew: the alarm was looked into, or what is watched was replaced."""
        self._stakes = self._bets.weights * (1 - HELD_BACK)
        self.n = self.disagreed = self.looks = 0
        self.shares = 0.0
        self.alarm = False
        self.evidence = self.most = 1.0

    def update(self, disagreed: int, n: int = 1) -> None:
        """Look at more cases.

        Args:
            disagreed: How many of them have the property, e.g. are decided differently by two variants.
            n: How many there are, none of them likelier than the limit, whatever the others are.

        Raises:
            ValueError: If ``disagreed`` is not in ``[0, n]``.
        """
        _check(disagreed, n)
        self._stakes = played(self._stakes, self._bets, disagreed, n)
        self.looks += n
        self.shares += disagreed
        self._seen(disagreed, n)

    def update_together(self, disagreed: int, n: int) -> None:
        """Look at the cases of one request, which may be alike: they count as one case.

        Args:
            disagreed: How many of them have the property.
            n: How many there are, at least 1.

        Raises:
            ValueError: If ``disagreed`` is not in ``[0, n]``.
        """
        _check(disagreed, n)
        self._stakes = played_share(self._stakes, self._bets, disagreed / n)
        self.looks += 1
        self.shares += disagreed / n
        self._seen(disagreed, n)

    def _seen(self, disagreed: int, n: int) -> None:
        self.n += n
        self.disagreed += disagreed
        self.evidence = float(self._stakes.sum()) + held_back(self.looks)
        self.most = max(self.most, self.evidence)
        self.alarm = self.most >= self.alarm_at


def _check(disagreed: int, n: int) -> None:
    if not 0 <= disagreed <= n:
        raise ValueError(f"disagreed must be in [0, n], got {disagreed} of {n}")
