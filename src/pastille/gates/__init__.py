"""Judge: hold what was measured against its limits. Pure; the interval decides, not the number."""

from pastille.gates.cost import judge_int8_share, judge_latency, judge_size
from pastille.gates.drops import check_drop
from pastille.gates.verdict import verdict

__all__ = ["check_drop", "judge_int8_share", "judge_latency", "judge_size", "verdict"]
