"""Binds the techniques to one checked contract; the only place where techniques meet."""

from pastille.stages.contract import Artifact, Stage, StageResult, run_stage
from pastille.stages.plan import stage_for

__all__ = ["Artifact", "Stage", "StageResult", "run_stage", "stage_for"]
