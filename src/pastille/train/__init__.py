"""The one training loop."""

from pastille.train.loop import Fitted, fit

__all__ = ["Fitted", "fit"]
