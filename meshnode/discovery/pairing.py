"""Pairing by a spoken code: two machines that have never met become members of one mesh.

One machine shows a code such as `7-amber-falcon`, a person types it at the other. Both run SPAKE2 (M. Abdalla and
D. Pointcheval, 2005; as in the package of that name) over the code, on a PAIR stream of a fresh connection:

    guest (types the code)                                host (shows it)
      | PairOffer(SPAKE2 message, nameplate)                |
      | --------------------------------------------------> |  is a code with this nameplate open? It is spent now
      |                PairOffer(SPAKE2 message, nameplate) |
      | <-------------------------------------------------- |
      | PairConfirm(proof of the guest)                     |
      | --------------------------------------------------> |
      |       PairConfirm(proof of the host), PairAccept or FIN
      | <-------------------------------------------------- |
      | PairAccept or FIN                                   |
      | --------------------------------------------------> |

Who may invite sends the other an invite made for this pairing alone: the host if it can, else the guest. The proofs
are bound to the keys of both nodes and to the connection (its TLS exporter), so whoever sits between the two has one
guess in 65,536 for each code that a person reads out. A code lives for two minutes and for one try; after three
failures pairing is closed for ten minutes. Protocol: 08-pairing.

The package computes in Python and not in constant time; it runs in a thread, and one try a code leaves nothing to time.
"""

from __future__ import annotations

import asyncio
import difflib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from meshnode.discovery.words import WORDS
from meshnode.errors import PairingFailed
from meshnode.wire.frames import ID_BYTES, LENGTH_BYTES, encode_frame
from meshnode.wire.messages import (
    MESSAGES,
    PairAccept,
    PairConfirm,
    PairOffer,
    decode_message,
    encode_message,
    message_id,
)
from meshnode.wire.registry import Close
from meshnode.wire.values import WireError

EXPORTER_LABEL = "EXPORTER-meshnode-pair"
EXPORTER_BYTES = 32
CODE_LIFE_S = 120.0
EXCHANGE_S = 20.0
MAX_FAILURES = 3
CLOSED_S = 600.0
NAMEPLATES = 99
MESSAGE_BYTES = 2048
_SPAKE_ID = b"meshnode-pair-1"

Message = TypeVar("Message", PairOffer, PairConfirm, PairAccept)
Invite = Callable[[], bytes | None]
"""Makes an invite for this pairing alone; None where this node may not invite. Runs in a thread."""


class PairStream(Protocol):
    """What pairing needs of a stream."""

    async def read_exactly(self, n: int) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...


class PairingRefused(PairingFailed):
    """The two machines could not be paired.

    `close_code` is the one with which the connection is to be closed.
    """

    def __init__(self, detail: str, close_code: Close = Close.PAIRING_FAILED, *, fix: str = "") -> None:
        super().__init__(detail, fix=fix)
        self.close_code = close_code


@dataclass(frozen=True, slots=True)
class Code:
    """What is read out: a number that finds the right machine, and two words that are the secret."""

    nameplate: int
    words: tuple[str, str]

    def __str__(self) -> str:
        return f"{self.nameplate}-{self.words[0]}-{self.words[1]}"


def new_code(draw: Callable[[int], int] = secrets.randbelow) -> Code:
    """A random code. `draw(n)` gives a number below n."""
    return Code(1 + draw(NAMEPLATES), (WORDS[draw(len(WORDS))], WORDS[draw(len(WORDS))]))


def parse_code(text: str) -> Code:
    """The code that a person has typed; case and the kind of gaps do not matter.

    Raises PairingRefused, with the nearest word for one that is not in the list: such a slip costs no try.
    """
    parts = text[:100].replace("-", " ").lower().split()
    if len(parts) != 3 or not (parts[0].isascii() and parts[0].isdigit() and 0 < int(parts[0]) <= NAMEPLATES):
        raise PairingRefused("a code is a number and two words", fix="type it as it is shown, such as 7-amber-falcon")
    for word in parts[1:]:
        if word not in WORDS:
            near = difflib.get_close_matches(word, WORDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else "look at the code once more"
            raise PairingRefused(f"no code has the word {word!r}", fix=hint)
    return Code(int(parts[0]), (parts[1], parts[2]))


@dataclass(frozen=True, slots=True)
class ShownCode:
    """A code that waits for its guest, until `expires_at` on the clock of the Pairing."""

    code: Code
    expires_at: float


class Pairing:
    """The codes of one node, and the tries that were made at them."""

    def __init__(
        self,
        node: bytes,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        """`node` is the id of this node, `clock` gives monotonic seconds."""
        self._node = node
        self._clock = clock
        self._draw = draw
        self._shown: ShownCode | None = None
        self._failures = 0
        self._closed_until = float("-inf")
        self._tried: dict[Code, float] = {}

    @property
    def shown(self) -> ShownCode | None:
        """The code that waits for its guest, if there is one."""
        if self._shown is not None and self._clock() >= self._shown.expires_at:
            self._shown = None
        return self._shown

    def open(self) -> ShownCode:
        """A new code, in place of the one before. Raises PairingRefused for ten minutes after three failures."""
        self._check_open()
        self._shown = ShownCode(new_code(self._draw), self._clock() + CODE_LIFE_S)
        return self._shown

    def close(self) -> None:
        """No code is waiting any more."""
        self._shown = None

    async def host(self, stream: PairStream, *, peer: bytes, exporter: bytes, invite: Invite) -> bytes | None:
        """Serve a guest on the PAIR `stream` that it has opened. `exporter` is keying material of the connection.

        Returns the invite with which to join the guest's mesh, or None when the guest joins ours. Raises
        PairingRefused; the caller closes the connection with its `close_code`.
        """
        async with _Exchange(self) as exchange:
            offer = await _receive(stream, PairOffer)
            shown = self.shown
            if shown is None or offer.nameplate != shown.code.nameplate:
                raise PairingRefused("no code with this number is open", Close.PAIRING_CLOSED)
            self._shown = None
            exchange.began()
            secret = _Secret(shown.code)
            await secret.start()
            _send(stream, PairOffer(secret.message, shown.code.nameplate))
            await secret.finish(offer.message, self._node, peer, exporter)
            secret.check(await _receive(stream, PairConfirm), peer)
            exchange.succeeded()
            _send(stream, PairConfirm(secret.proof(self._node)))
            token = await asyncio.to_thread(invite)
            if token is not None:
                _send(stream, PairAccept(token))
            stream.write_eof()
            return None if token is not None else await _offered(stream)

    async def guest(
        self,
        stream: PairStream,
        code: Code,
        *,
        peer: bytes,
        exporter: bytes,
        invite: Invite,
        node: bytes | None = None,
    ) -> bytes | None:
        """Try the code that a person has typed, on a PAIR `stream` whose header is written. As `host` otherwise.

        `node` is this end's key on the connection where that is not the key of the node, but one made for the visit.
        With the code PAIRING_CLOSED nothing was tried: another machine may be the one that shows it.
        """
        self._check_open()
        own = self._node if node is None else node
        self._check_untried(code)
        async with _Exchange(self) as exchange:
            secret = _Secret(code)
            await secret.start()
            _send(stream, PairOffer(secret.message, code.nameplate))
            offer = await _receive(stream, PairOffer)
            # Again, now that it costs: of two machines that are asked side by side, one gets the try.
            self._check_untried(code)
            self._tried[code] = self._clock()
            exchange.began()
            await secret.finish(offer.message, own, peer, exporter)
            _send(stream, PairConfirm(secret.proof(own)))
            secret.check(await _receive(stream, PairConfirm), peer)
            exchange.succeeded()
            offered = await _receive_or_end(stream, PairAccept)
            token = await asyncio.to_thread(invite) if offered is None else None
            if token is not None:
                _send(stream, PairAccept(token))
            stream.write_eof()
            if offered is None and token is None:
                raise PairingRefused("neither of the two may invite the other", fix=_NOBODY_INVITES)
            return None if offered is None else offered.invite

    # --- tries ----------------------------------------------------------------------------------------------

    def failed(self) -> None:
        """A try has failed; the third one closes pairing."""
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self._failures = 0
            self._closed_until = self._clock() + CLOSED_S
            self._shown = None

    def succeeded(self) -> None:
        """A try has succeeded."""
        self._failures = 0

    def _check_open(self) -> None:
        left_s = self._closed_until - self._clock()
        if left_s > 0:
            raise PairingRefused(
                f"pairing is closed after {MAX_FAILURES} failures",
                Close.PAIRING_CLOSED,
                fix=f"wait {round(left_s / 60) or 1} min; or use an invite: meshnode invite",
            )

    def _check_untried(self, code: Code) -> None:
        now = self._clock()
        self._tried = {tried: at for tried, at in self._tried.items() if now - at < CODE_LIFE_S}
        if code in self._tried:
            raise PairingRefused("this code has been tried already")


_NOBODY_INVITES = "pair with a machine that has founded the mesh, or was invited with --may-invite"


class _Exchange:
    """The frame of one try: its time, its failure, and errors as PairingRefused."""

    def __init__(self, pairing: Pairing) -> None:
        self._pairing = pairing
        self._at_stake = False
        self._timeout = asyncio.timeout(EXCHANGE_S)

    def began(self) -> None:
        """From here on whatever goes wrong is a failed try."""
        self._at_stake = True

    def succeeded(self) -> None:
        """Both have proven that they know the code."""
        self._at_stake = False
        self._pairing.succeeded()

    async def __aenter__(self) -> _Exchange:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None and self._at_stake:
            self._pairing.failed()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise PairingRefused(f"it took longer than {EXCHANGE_S:.0f} seconds") from None
        if isinstance(error, WireError):
            raise PairingRefused(error.reason, error.code) from None
        if isinstance(error, asyncio.IncompleteReadError):
            raise PairingRefused("the other machine has ended it half way") from None
        if isinstance(error, OSError):
            raise _lost(error, self._at_stake) from None


def _lost(error: OSError, at_stake: bool) -> PairingRefused:
    """Why the connection was closed, if the other machine has said so (`code` of net.stream.LinkLost)."""
    if getattr(error, "code", 0) == Close.PAIRING_CLOSED:
        return PairingRefused("no code with this number is open there", Close.PAIRING_CLOSED)
    if getattr(error, "code", 0) == Close.PAIRING_FAILED:
        return PairingRefused("the code is wrong" if at_stake else "the other machine has refused it")
    return PairingRefused("the connection to the other machine was lost")


class _Secret:
    """One run of SPAKE2, and the key that follows from it."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._spake: Any = None
        self.message = b""
        self._key = b""

    async def start(self) -> None:
        """Make `message`, the one to send."""
        self.message = await asyncio.to_thread(self._start)

    def _start(self) -> bytes:
        from spake2 import SPAKE2_Symmetric  # takes a tenth of a second the first time, as it computes its groups

        self._spake = SPAKE2_Symmetric(str(self._code).encode("ascii"), idSymmetric=_SPAKE_ID)
        message: bytes = self._spake.start()
        return message

    async def finish(self, message: bytes, node: bytes, peer: bytes, exporter: bytes) -> None:
        """Take the other one's message. Raises PairingRefused for one that is no message, or our own."""
        try:
            shared = await asyncio.to_thread(self._spake.finish, message)
        except Exception:  # the package has its own tree, and raises ValueError, AssertionError and others beside it
            raise PairingRefused("the other machine broke the rules", Close.PROTOCOL_ERROR) from None
        self._key = _bound(shared, node, peer, exporter)

    def proof(self, node: bytes) -> bytes:
        """That `node` knows the key."""
        return hmac.digest(self._key, b"confirm\0" + node, "sha256")

    def check(self, confirm: PairConfirm, peer: bytes) -> None:
        """Raises PairingRefused when the peer does not know the key."""
        if not hmac.compare_digest(confirm.proof, self.proof(peer)):
            raise PairingRefused("the code is wrong")


def _bound(shared: bytes, node: bytes, peer: bytes, exporter: bytes) -> bytes:
    """The key of the proofs: HKDF (RFC 5869) over the secret, for these two nodes on this connection alone."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    context = b"meshnode/1 pair\0" + b"".join(sorted((node, peer))) + exporter
    return HKDF(SHA256(), 32, salt=None, info=context).derive(shared)


# --- frames -------------------------------------------------------------------------------------------------------


def _send(stream: PairStream, message: PairOffer | PairConfirm | PairAccept) -> None:
    stream.write(encode_frame(message_id(message), encode_message(message)))


async def _receive(stream: PairStream, wanted: type[Message]) -> Message:
    """The one message that may come now. Raises WireError, IncompleteReadError, OSError."""
    size = int.from_bytes(await stream.read_exactly(LENGTH_BYTES), "big")
    if not ID_BYTES <= size <= MESSAGE_BYTES:
        raise WireError(f"a pairing message of {size} bytes")
    frame = await stream.read_exactly(size)
    number = int.from_bytes(frame[:ID_BYTES], "big")
    if MESSAGES.get(number) is not wanted:
        raise WireError(f"another message where {wanted.__name__} was expected")
    message: Message = decode_message(number, frame[ID_BYTES:])
    return message


async def _receive_or_end(stream: PairStream, wanted: type[Message]) -> Message | None:
    """As `_receive`; None when the other one has nothing more to say."""
    try:
        return await _receive(stream, wanted)
    except asyncio.IncompleteReadError as error:
        if error.partial or error.expected != LENGTH_BYTES:
            raise
        return None


async def _offered(stream: PairStream) -> bytes:
    """The invite of the guest. Raises PairingRefused when it has none, either."""
    try:
        accept = await _receive_or_end(stream, PairAccept)
    except OSError as error:
        if getattr(error, "code", 0) != Close.PAIRING_FAILED:
            raise
        accept = None  # it has closed the connection because of that, which may overtake the end of its stream
    if accept is None:
        raise PairingRefused("neither of the two may invite the other", fix=_NOBODY_INVITES)
    return accept.invite
