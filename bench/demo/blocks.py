"""Reads the blocks in which words and wordings are written down."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """Cut a block at its white space."""
    return tuple(text.split())


def wordings(text: str) -> tuple[str, ...]:
    """Cut a block at its bars and line ends."""
    return tuple(part.strip() for line in text.strip().splitlines() for part in line.split("|"))
