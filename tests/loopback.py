"""What keeps a node under test off every network but loopback, and out of the way of others."""

from __future__ import annotations

LOOPBACK_ONLY = {
    "MESHNODE_BIND_HOST": "127.0.0.1",
    "MESHNODE_BIND_PORT": "0",
    "MESHNODE_PUBLIC_PORT": "0",
    "MESHNODE_LAN": "off",
    "MESHNODE_PORT_MAP": "off",
    # Nobody listens there: a test that wants relays brings its own.
    "MESHNODE_NOSTR_RELAY": "ws://127.0.0.1:9",
}
"""Environment of every node that a test or a benchmark starts."""
