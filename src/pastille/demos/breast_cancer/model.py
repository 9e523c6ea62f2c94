"""A multi-layer perceptron for 30 measurements of cell nuclei."""

from torch import nn


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
