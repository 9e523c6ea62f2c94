"""An A/B test: who was asked how often, who was right, and whether that is chance."""

from __future__ import annotations

from typing import Literal, final

from pastille.serve.values import Answered
from pastille.serve.watch import words
from pastille.serve.watch.snapshot import ComparisonView, State
from pastille.stats.sequential import TwoSampleTest

Arm = Literal["a", "b"]
_SHOWN = 1e12  # evidence beyond all doubt
_MOST_SUBJECTS = 100_000  # that are kept: 10 MB; what so many have not shown need not be known
_MOST_SHARE = 0.99  # a test needs a few subjects of either arm


@final
class ArmComparison:
    """The two arms of a test. Requests of no subject belong to neither: they were not assigned."""

    def __init__(self, share_b: float) -> None:
        self.names: dict[Arm, str] = {"a": "a", "b": "b"}
        self.requests: dict[Arm, int] = {"a": 0, "b": 0}
        self.test = TwoSampleTest(share_b=min(share_b, _MOST_SHARE))
        self._judged: set[bytes] = set()

    def add(self, event: Answered) -> None:
        """Count a request to its arm, whoever answered it in the end."""
        reply = event.reply
        if reply.arm is None or event.call.subject is None:
            return
        self.requests[reply.arm] += 1
        if reply.fallback is None:
            self.names[reply.arm] = f"{reply.model}:{reply.version}/{reply.answer.variant}"

    def judge(self, arm: Arm, *, correct: bool, subject: bytes) -> None:
        """A label says whether an answer of that arm was right; of each subject the first one counts.

        Answers about one patient are right or wrong together: ten of them are not ten patients.
        """
        if subject not in self._judged and len(self._judged) < _MOST_SUBJECTS:
            self._judged.add(subject)
            self.test.update(arm, correct)

    def view(self) -> ComparisonView:
        """How it stands."""
        test = self.test
        labelled, correct = test.labelled, test.correct
        state: State = "alarm" if test.alarm else "ok" if min(labelled.values()) > 0 else "not_enough_data"
        return ComparisonView(
            a=self.names["a"],
            b=self.names["b"],
            requests_a=self.requests["a"],
            requests_b=self.requests["b"],
            labelled_a=labelled["a"],
            labelled_b=labelled["b"],
            correct_a=correct["a"],
            correct_b=correct["b"],
            evidence=min(_SHOWN, test.evidence),
            alarm_at=test.alarm_at,
            state=state,
            words=words.comparison(
                self.names["a"],
                self.names["b"],
                labelled=(labelled["a"], labelled["b"]),
                correct=(correct["a"], correct["b"]),
                state=state,
                alarm_at=test.alarm_at,
            ),
        )
