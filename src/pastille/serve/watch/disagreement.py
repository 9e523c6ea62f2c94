"""How often two variants, or two bundles, decide the same cases differently."""

from __future__ import annotations

from typing import Final, final

import numpy as np

from pastille.serve.settings import Alarm
from pastille.serve.values import Compared
from pastille.serve.watch import words
from pastille.serve.watch.snapshot import DisagreementView
from pastille.stats.confidence_sequence import rate_sequence
from pastille.stats.eprocess import RateAlarm

_SHOWN: Final = 1e12  # evidence beyond all doubt
FEWEST: Final = 30  # requests below which the rate is not judged in words; the alarm itself needs no minimum


@final
class Disagreement:
    """One pair, since the start."""

    def __init__(self, served: str, other: str, alarm: Alarm) -> None:
        self.served, self.other = served, other
        self.lost = self.gained = 0
        self.rate = RateAlarm(alarm.rate, alarm.significance)

    @property
    def of_variants(self) -> bool:
        """Whether two variants of one bundle are compared: only that speaks against a variant."""
        return "/" not in self.served

    def add(self, event: Compared) -> bool:
        """Look at more cases; True where the alarm goes off by them."""
        before = self.rate.alarm
        if len(event.disagree):  # cases of one request may be one patient's: they count as one
            self.rate.update_together(int(np.count_nonzero(event.disagree)), len(event.disagree))
        self.lost += int(np.count_nonzero(event.lost))
        self.gained += int(np.count_nonzero(event.gained))
        return self.rate.alarm and not before

    @property
    def reason(self) -> str:
        """Why the alarm went off, in a sentence."""
        rate = self.rate
        return words.alarm_reason(
            self.served, self.other, n=rate.n, disagreed=rate.disagreed, limit=rate.limit
        )

    def view(self) -> DisagreementView:
        """How it stands."""
        rate = self.rate
        interval = rate_sequence(rate.shares, rate.looks)
        known = rate.n > 0
        return DisagreementView(
            served=self.served,
            other=self.other,
            n=rate.n,
            disagreed=rate.disagreed,
            lost=self.lost,
            gained=self.gained,
            low=interval.low if known else None,
            high=interval.high if known else None,
            limit=rate.limit,
            evidence=min(_SHOWN, rate.most if rate.alarm else rate.evidence),
            alarm_at=rate.alarm_at,
            state="alarm" if rate.alarm else "ok" if rate.looks >= FEWEST else "not_enough_data",
            words=words.disagreement(
                self.served,
                self.other,
                n=rate.n,
                disagreed=rate.disagreed,
                low=interval.low,
                high=interval.high,
                limit=rate.limit,
                alarm=rate.alarm,
            ),
        )
