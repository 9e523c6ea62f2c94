"""Where a file was seen to decide, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How a file decides on one kind of CPU, held against the machine that judged it.

    There it was judged on the test split, and agrees with itself; elsewhere it was asked cases of validation.
    """

    isa: str  # "avx512-vnni" of the machine that judged it; else as asked: "avx2", "sse4", "aarch64"
    emulated: bool
    cases: int
    equal_decisions: int
    identical: int  # cases answered alike to the last bit
    runtime_version: str

    @property
    def words(self) -> str:
        """E.g. ``"avx2 (emulated): 97 of 100 decisions alike"``."""
        if not self.emulated:
            return f"{self.isa}: judged there on {self.cases} cases"
        return f"{self.isa} (emulated): {self.equal_decisions} of {self.cases} decisions alike"

    def __post_init__(self) -> None:
        if not 0 <= self.identical <= self.cases or not 0 <= self.equal_decisions <= self.cases:
            raise ValueError(
                f"equal_decisions and identical must lie within the {self.cases} cases, "
                f"got {self.equal_decisions} and {self.identical}"
            )
