"""A multi-layer perceptron for what is known of a hospital encounter."""

from torch import Tensor, nn

FEATURES = 175  # columns that data.py makes of the published table


class Perceptron(nn.Module):
    """Three hidden layers and the logits of two classes."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        sizes = (features, width, width, width // 2)
        hidden = [
            nn.Sequential(nn.Linear(sizes[i], size), nn.ReLU(), nn.Dropout(0.3))
            for i, size in enumerate(sizes[1:])
        ]
        self.hidden, self.head = nn.Sequential(*hidden), nn.Linear(sizes[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        """From features ``(N, F)`` to the logits of not readmitted and readmitted, ``(N, 2)``."""
        logits: Tensor = self.head(self.hidden(x))
        return logits


def build(width: int = 512, features: int = FEATURES) -> nn.Module:
    """What the recipe names, untrained."""
    return Perceptron(width, features)
