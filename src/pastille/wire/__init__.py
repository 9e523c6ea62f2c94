"""What goes over the wire, for the server and the client alike: the Open Inference Protocol's bodies."""

from __future__ import annotations
