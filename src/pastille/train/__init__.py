"""The one training loop."""

from pastille.train.extras import PLAIN, BatchLoss, Extras, Objective
from pastille.train.loop import Fitted, fit

__all__ = ["PLAIN", "BatchLoss", "Extras", "Fitted", "Objective", "fit"]
