"""What keeps a node under test off every network but loopback, and out of the way of others."""

from __future__ import annotations

LOOPBACK_ONLY = {"MESHNODE_BIND_HOST": "127.0.0.1", "MESHNODE_BIND_PORT": "0", "MESHNODE_LAN": "off"}
"""Environment of every node that a test or a benchmark starts."""
