"""The greeting that makes a connection a session: HELLO and WELCOME on the control stream.

    dialler                                           acceptor
      | CONTROL stream, HELLO (certificate or invite)    |
      | -----------------------------------------------> |  who is it, may it come in, as what?
      |                WELCOME (certificate, issued)     |
      | <----------------------------------------------- |

The transport has proven the keys of both sides; here they prove that these keys belong to the mesh, or, in an open
mesh, that the policy of the acceptor lets them in. Exactly one frame is read in each direction, within a time and a
size; whatever else comes closes the connection with one clear code. Protocol: 07-admission.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from meshnode.core.open_policy import Refusal
from meshnode.errors import InviteInvalid, NetworkError, PeerRefused, PeerUnreachable
from meshnode.mesh.credentials import Credentials
from meshnode.mesh.vault import Vault
from meshnode.net.address import is_virtual
from meshnode.wire import certificates, schema
from meshnode.wire.address import Address
from meshnode.wire.certificates import Certificate
from meshnode.wire.frames import ID_BYTES, LENGTH_BYTES, encode_frame, encode_stream_header
from meshnode.wire.messages import MESSAGES, Hello, Welcome, encode_message, message_id
from meshnode.wire.registry import CLOSE_TEXTS, LIMIT_ADMISSION_TIMEOUT_S, VERSION, Close, Role, StreamType
from meshnode.wire.values import WireError, decode

if TYPE_CHECKING:
    from meshnode.net.link import Link
    from meshnode.net.stream import MeshStream

GREETING_BYTES = 4096
"""Longer than any HELLO or WELCOME can be; a stranger is not read further."""
_OF_INVITES = frozenset({Close.INVITE_INVALID, Close.INVITE_EXPIRED, Close.INVITE_REVOKED, Close.INVITE_USED})

Greeting = TypeVar("Greeting", Hello, Welcome)


@dataclass(frozen=True, slots=True)
class Session:
    """A connection to an admitted peer.

    `role` is what the peer may do here: never more than its `certificate` says, less if it asked for less. `observed`
    is where the peer sees us (dialler only), `addresses` where it says that it can be reached (acceptor only).
    """

    link: Link
    stream: MeshStream
    certificate: Certificate
    role: Role
    name: str
    software: str
    observed: Address | None = None
    addresses: tuple[Address, ...] = ()


async def greet(link: Link, vault: Vault, *, hello: Hello, mesh_name: str = "") -> Session:
    """Ask the acceptor of `link` to let us in. With an invite the certificate is in the vault when this returns.

    `hello` has our certificate, or an invite, or both where the certificate may have expired. Raises InviteInvalid or
    PeerRefused (with the close code) when refused, PeerUnreachable when no answer comes, AlreadyInMesh,
    HomeNotWritable; the link is closed then.
    """
    with _Closing(link) as closing:
        stream = link.open_stream()
        stream.write(encode_stream_header(StreamType.CONTROL, b"") + _frame(hello))
        welcome = await _receive(stream, Welcome)
        certificate = vault.admit(welcome.certificate, link.peer, mesh=hello.mesh)
        if certificate.role != Role.MEMBER:
            raise WireError("a client lets nobody in", Close.ROLE_REFUSED)
        if hello.invite and not (welcome.issued or hello.certificate):
            raise WireError("no certificate came for the invite")
        if hello.invite and welcome.issued:
            await asyncio.to_thread(vault.accept, hello.mesh, mesh_name, welcome.issued)
        closing.done()
    return Session(
        link, stream, certificate, Role(certificate.role), welcome.name, welcome.software, observed=welcome.observed
    )


class NotLetIn(PeerRefused):
    """The policy of an open mesh refuses this peer.

    `counter` names the reason for the metrics.
    """

    counter = ""


async def receive(link: Link, stream: MeshStream, vault: Vault, *, name: str = "", software: str = "") -> Session:
    """Judge who has opened the control `stream` (its header has been read), and welcome it.

    Raises PeerRefused (with the close code) for one that is not let in, NotLetIn if by the policy of an open mesh;
    PeerUnreachable when it went away or took too long, HomeNotWritable; the link is closed then.
    """
    observed = Address.of(link.address.host, link.address.port)
    with _Closing(link) as closing:
        if vault.policy is not None:
            _obey(vault.policy.attempt(observed, monotonic()))
        hello = await _receive(stream, Hello)
        mine = vault.credentials
        if mine is None:
            raise WireError("this node is in no mesh", Close.NOT_ADMITTED)
        certificate, issued = await _judge(hello, link.peer, vault, mine)
        if hello.role == Role.MEMBER and certificate.role != Role.MEMBER:
            raise WireError("the certificate is one of a client", Close.ROLE_REFUSED)
        if vault.policy is not None:
            _obey(vault.policy.judge(link.peer, observed, Role(hello.role)))
        # Our own certificate may have been renewed while the invite was being counted.
        shown = (vault.credentials or mine).certificate
        # A detour stands for the way to the peer; nobody else can dial it.
        seen_at = None if is_virtual(observed) else observed
        stream.write(_frame(Welcome(VERSION, shown, issued, seen_at, name, software)))
        closing.done()
    role = Role(hello.role)
    return Session(link, stream, certificate, role, hello.name, hello.software, addresses=hello.addresses)


async def _judge(hello: Hello, peer: bytes, vault: Vault, mine: Credentials) -> tuple[Certificate, bytes]:
    """The certificate of the peer, and its bytes if it was issued just now. Raises WireError."""
    if hello.role not in tuple(Role):
        raise WireError("an unknown role", Close.ROLE_REFUSED)
    if hello.mesh != mine.mesh:
        raise WireError("the peer belongs to another mesh", Close.WRONG_MESH)
    if mine.role != Role.MEMBER:
        raise WireError("a client lets nobody in", Close.ROLE_REFUSED)
    if hello.certificate:
        try:
            return vault.admit(hello.certificate, peer), b""
        except WireError:
            # One whose membership has ended may come again with an invite.
            if not hello.invite:
                raise
    if not hello.invite:
        raise WireError("neither a certificate nor an invite", Close.NOT_ADMITTED)
    issued = await asyncio.to_thread(vault.redeem, hello.invite, peer, Role(hello.role))
    return certificates.read(issued), issued


def _obey(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise _Refused(refusal)


class _Refused(WireError):
    """What the policy says, on its way to the close code."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text, refusal.code)
        self.counter = refusal.counter


class _Closing:
    """Whatever goes wrong inside closes the link with the code that fits, and leaves as an error for people."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._done = False

    def done(self) -> None:
        """The greeting has succeeded."""
        self._done = True

    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        code = _code_for(error)
        self._link.close(code, CLOSE_TEXTS[code])
        if isinstance(error, _Refused):
            refused = NotLetIn(error.reason, close_code=code)
            refused.counter = error.counter
            raise refused from None
        if isinstance(error, WireError):
            raise _refusal(error.code, error.reason) from None
        if isinstance(error, TimeoutError):
            raise PeerUnreachable(f"no greeting came within {LIMIT_ADMISSION_TIMEOUT_S} seconds") from None
        if isinstance(error, asyncio.IncompleteReadError):
            raise PeerUnreachable("the peer ended the greeting half way") from None
        if isinstance(error, OSError):
            raise _refusal(getattr(error, "code", 0), str(error)) from None


def _code_for(error: BaseException) -> Close:
    """With which code a failed greeting closes the link."""
    if isinstance(error, WireError):
        return error.code
    if isinstance(error, TimeoutError):
        return Close.ADMISSION_TIMEOUT
    if isinstance(error, asyncio.IncompleteReadError):
        return Close.PROTOCOL_ERROR
    if isinstance(error, asyncio.CancelledError | OSError):
        return Close.DONE
    return Close.INTERNAL


def _refusal(code: int, reason: str) -> NetworkError:
    """A close code as the error that a person reads."""
    if code in _OF_INVITES:
        return InviteInvalid(CLOSE_TEXTS[code])
    if code in CLOSE_TEXTS and code != Close.DONE:
        return PeerRefused(CLOSE_TEXTS[code], close_code=code)
    return PeerUnreachable(reason)


def _frame(message: Any) -> bytes:
    return encode_frame(message_id(message), encode_message(message))


async def _receive(stream: MeshStream, wanted: type[Greeting]) -> Greeting:
    """The one message that may come now. Raises WireError, TimeoutError, IncompleteReadError, OSError."""
    async with asyncio.timeout(LIMIT_ADMISSION_TIMEOUT_S):
        size = int.from_bytes(await stream.read_exactly(LENGTH_BYTES), "big")
        if not ID_BYTES <= size <= GREETING_BYTES:
            raise WireError(f"a greeting of {size} bytes")
        frame = await stream.read_exactly(size)
    if MESSAGES.get(int.from_bytes(frame[:ID_BYTES], "big")) is not wanted:
        raise WireError(f"another message where {wanted.__name__} was expected")
    body = frame[ID_BYTES:]
    plain = decode(body, limit_bytes=GREETING_BYTES)
    # Before the rest: a later version may have members that this one refuses, and should hear the true reason.
    if isinstance(plain, dict) and plain.get(0) != VERSION:
        raise WireError(f"version {plain.get(0)!r:.20} of the protocol", Close.BAD_VERSION)
    message: Greeting = schema.read(wanted, body, limit_bytes=GREETING_BYTES)
    return message
