"""Open meshes: public ones that belong to nobody and are named alone, and the certificates of their members.

The id of an open mesh is a hash of its name, so whoever says the same name means the same mesh, and two islands of one
name need no more than one link to become one. No key signs for such a mesh: a member vouches for itself, which proves
nothing but that it holds its own key. What keeps a mesh open and usable is the policy of each node
(core/open_policy.py), never a certificate. Protocol: 07-admission.
"""

from __future__ import annotations

import hashlib
import unicodedata

from meshnode.wire import certificates
from meshnode.wire.certificates import BACKDATED_S, Certificate
from meshnode.wire.registry import (
    LIMIT_CLOCK_SKEW_S,
    LIMIT_NAME_CHARS,
    LIMIT_PUBLIC_CERTIFICATE_TTL_S,
    Close,
    Role,
)
from meshnode.wire.schema import can_be_shown
from meshnode.wire.signed import Sign, Verify, is_signed_by
from meshnode.wire.values import WireError

DEFAULT_NAME = "meshnode"
_DOMAIN = b"meshnode open mesh\0"
_MARKS = "-_."


def canonical_name(text: str) -> str:
    """The one spelling of a name: NFKC, case folded, spaces as "-"; letters, digits and - _ . of any script.

    Raises ValueError for a text that is no name, in words for a person.
    """
    if len(text) > 4 * LIMIT_NAME_CHARS:
        raise ValueError(f"the name of a public mesh has 1 to {LIMIT_NAME_CHARS} characters")
    # Folding can undo the normal form, so it is made twice (Unicode, D146).
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    name = "-".join(folded.split())
    if not 1 <= len(name) <= LIMIT_NAME_CHARS:
        raise ValueError(f"the name of a public mesh has 1 to {LIMIT_NAME_CHARS} characters")
    if not can_be_shown(name) or not all(_is_fitting(character) for character in name):
        raise ValueError("the name of a public mesh has letters, digits, - _ . and spaces")
    return name


def _is_fitting(character: str) -> bool:
    # Combining marks belong to the letters of many scripts.
    return character in _MARKS or unicodedata.category(character)[0] in "LNM"


def open_mesh_id(name: str) -> bytes:
    """The 32-byte id of the open mesh of this name, in whatever spelling. Raises ValueError."""
    return hashlib.blake2s(_DOMAIN + canonical_name(name).encode("utf-8")).digest()


def self_issued(sign: Sign, *, mesh: bytes, node: bytes, role: Role, serial: bytes, now_s: float) -> bytes:
    """The certificate of `node` itself, to whom `sign` belongs, for an open mesh. `serial`: 8 random bytes."""
    begins, ends = int(now_s) - BACKDATED_S, int(now_s) + LIMIT_PUBLIC_CERTIFICATE_TTL_S
    return certificates.issue(Certificate(mesh, node, role, begins, ends, serial), sign)


def check_self_issued(signed: bytes, *, mesh: bytes, node: bytes, now_s: float, verify: Verify) -> Certificate:
    """The certificate, if `node` has issued it for itself, for this mesh and for now (wall time in seconds).

    It proves no more than that; the caller knows that `mesh` is an open one. Raises WireError with the close code that
    says why not.
    """
    certificate = certificates.read(signed)
    if certificate.mesh != mesh:
        raise WireError("the certificate is of another mesh", Close.WRONG_MESH)
    if certificate.node != node:
        raise WireError("the certificate is of another node", Close.NOT_ADMITTED)
    if certificate.role not in tuple(Role):
        raise WireError("the certificate names an unknown role", Close.NOT_ADMITTED)
    if certificate.authority or certificate.may_invite or certificate.replaces:
        raise WireError("nobody vouches for another in an open mesh", Close.NOT_ADMITTED)
    if now_s > certificate.not_after:
        raise WireError("the certificate has expired", Close.CERTIFICATE_EXPIRED)
    if now_s + LIMIT_CLOCK_SKEW_S < certificate.not_before:
        raise WireError("the certificate is not valid yet", Close.CERTIFICATE_EXPIRED)
    # The issuer's clock may be ahead by as much as its certificate is backdated, as in closed meshes.
    if certificate.not_after > now_s + LIMIT_PUBLIC_CERTIFICATE_TTL_S + BACKDATED_S:
        raise WireError("the certificate lives longer than an open mesh allows", Close.NOT_ADMITTED)
    if not is_signed_by(node, certificates.PURPOSE, signed, verify):
        raise WireError("the certificate is forged", Close.NOT_ADMITTED)
    return certificate
