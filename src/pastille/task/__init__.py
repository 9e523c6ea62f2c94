"""The user's model and data, loaded and checked against each other."""

from pastille.task.forward import answers, example_batch, forward
from pastille.task.load import Task, load_task

__all__ = ["Task", "answers", "example_batch", "forward", "load_task"]
