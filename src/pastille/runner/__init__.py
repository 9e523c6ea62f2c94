"""The imperative shell: carries out a plan on a task, and writes down what happened."""

from pastille.runner.run import RunResult, run

__all__ = ["RunResult", "run"]
