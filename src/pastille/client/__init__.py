"""Ask a server: `pastille.Client` and `pastille.AsyncClient`."""

from __future__ import annotations

from pastille.client.client import AsyncClient, Client
from pastille.client.errors import ServerError
from pastille.client.prediction import Prediction

__all__ = ["AsyncClient", "Client", "Prediction", "ServerError"]
