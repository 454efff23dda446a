"""Drives the machines of core over the transport of net: sessions, stream handlers, tunnels."""
