"""Bytes to values and back, without any IO: frames, messages, invite tokens."""
