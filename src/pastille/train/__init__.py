"""The one training loop."""

from pastille.train.loop import PLAIN, Extras, Fitted, fit

__all__ = ["PLAIN", "Extras", "Fitted", "fit"]
