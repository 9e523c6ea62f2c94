"""Ask a server: `pastille.Client` and `pastille.AsyncClient`."""

from __future__ import annotations
