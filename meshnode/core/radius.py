"""How far a request may travel: `local` (machines of one owner), `trusted` (paired friends), `public` (strangers).

A request carries the furthest radius that it may reach, and a host is in exactly one. Who is where follows from what
the person of this node has said, from certificates of owners that were checked, and from membership in the private
mesh; never from what a node, a listing, a page, a prompt or a model says of itself.

Rules of this file: pure; whatever is not known for certain counts as further away, so every mistake is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Radius = Literal["local", "trusted", "public"]
LOCAL: Final[Radius] = "local"
TRUSTED: Final[Radius] = "trusted"
PUBLIC: Final[Radius] = "public"
RADII: Final[tuple[Radius, ...]] = (LOCAL, TRUSTED, PUBLIC)
"""From near to far."""
HEADER: Final = "x-meshnode-radius"

Grant = Literal["local", "trusted", "none"]
"""What a person says of a key; with `none` no certificate counts for it."""


def distance(radius: str) -> int:
    """Its place in RADII; beyond all of them for a word that is none."""
    return RADII.index(radius) if radius in RADII else len(RADII)


def reaches(allowed: str, radius: str) -> bool:
    """Whether a request that may go as far as `allowed` may go to a host of that radius."""
    return distance(radius) <= distance(allowed) < len(RADII)


def furthest(radii: Iterable[str]) -> Radius:
    """The furthest of them; `local` for none, `public` where one is no radius."""
    return RADII[min(max(map(distance, radii), default=0), len(RADII) - 1)]


def nearest(radii: Iterable[str]) -> Radius:
    """The nearest of them; `public` for none."""
    return RADII[min(min(map(distance, radii), default=len(RADII)), len(RADII) - 1)]


def parse_radius(text: str) -> Radius:
    """The radius that a person or a header names; case and spaces about it do not matter. Raises ValueError."""
    word = text.strip().lower()
    if word not in RADII:
        raise ValueError(f"{text.strip()[:40]!r} is not one of {', '.join(RADII)}")
    return word


def parse_header(values: Iterable[bytes], default: Radius) -> Radius:
    """The radius of a request by its headers of the name HEADER: `default` without one. Raises ValueError for several,
    also for equal ones: of two programs in a row the second one may mean something else.
    """
    given = list(values)
    if len(given) > 1:
        raise ValueError("it is there twice")
    return parse_radius(given[0].decode("latin-1")) if given else default


@dataclass(frozen=True, slots=True)
class TrustList:
    """What the person of this node has said of keys, of nodes and of owners."""

    nodes: Mapping[bytes, Grant] = field(default_factory=dict)
    owners: Mapping[bytes, Grant] = field(default_factory=dict)


def radius_of(
    node: bytes, *, in_private_mesh: bool, owner: bytes | None, my_owner: bytes | None, trust: TrustList
) -> Radius:
    """Where a node is.

    `owner` is who owns it by a certificate that was checked just now, `my_owner` the same of this node; None where
    there is none. What was said of the node itself counts before what was said of its owner, that before ownership.
    A member of the private mesh is `trusted` at least: whoever is to be less must leave that mesh.
    """
    outside: Radius = TRUSTED if in_private_mesh else PUBLIC
    said = trust.nodes.get(node) or (trust.owners.get(owner) if owner is not None else None)
    if said is not None:
        return outside if said == "none" else nearest((said, outside))
    return LOCAL if owner is not None and owner == my_owner else outside
