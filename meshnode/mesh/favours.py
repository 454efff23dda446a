"""What members do for each other besides gossip: measure a round trip, and issue a new certificate.

Both are asked for in one message and answered in one. A peer gets one of each at a time; what is asked beyond that is
not answered, so that nobody can make this node dial the whole mesh on his behalf.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from meshnode.errors import MeshnodeError
from meshnode.mesh.sessions import Peer
from meshnode.mesh.vault import Vault
from meshnode.telemetry import LOG
from meshnode.wire.messages import Measure, Measured, Renew, Renewed
from meshnode.wire.registry import Close, Role
from meshnode.wire.schema import MAX_U32
from meshnode.wire.values import WireError

AT_ONCE = 16
ANSWER_S = 3.0
MICROSECONDS = 1_000_000


class Favours:
    """Asks for favours, and does them.

    `measure` gives a round trip in seconds to a node, dialling it if need be, and raises MeshnodeError when it does not
    answer; `send` sends a message to an admitted peer; `renewed` is called when a new certificate is in the vault.
    """

    def __init__(
        self,
        vault: Vault,
        *,
        measure: Callable[[bytes], Awaitable[float]],
        send: Callable[[bytes, Any], None],
        renewed: Callable[[], None],
        counters: Counter[str],
    ) -> None:
        self._vault = vault
        self._measure = measure
        self._send = send
        self._renewed = renewed
        self._counters = counters
        self._busy: dict[tuple[bytes, type[Any]], asyncio.Task[None]] = {}
        self._asked: dict[tuple[bytes, bytes], asyncio.Future[float | None]] = {}
        self._renewal_from: bytes | None = None

    def received(self, peer: Peer, message: Any) -> bool:
        """Whether the message was one of these; it has been dealt with then. Raises WireError for a wrong role."""
        match message:
            case Measure(node):
                if peer.role is not Role.MEMBER:
                    raise WireError("a client asks for a measurement", Close.ROLE_REFUSED)
                self._do(peer.node, Measure, self._measure_for(peer.node, node))
            case Renew(certificate):
                self._do(peer.node, Renew, self._renew_for(peer.node, certificate))
            case Measured(node, rtt_us):
                answer = self._asked.get((peer.node, node))
                if answer is not None and not answer.done():
                    answer.set_result(rtt_us / MICROSECONDS if rtt_us else None)
            case Renewed(certificate):
                if self._renewal_from == peer.node:
                    self._renewal_from = None
                    self._do(peer.node, Renewed, self._take_renewal(certificate))
            case _:
                return False
        return True

    async def measured_by(self, peer: bytes, node: bytes, timeout_s: float = ANSWER_S + 1) -> float | None:
        """The round trip between `peer` and `node` in seconds; None when either of them does not answer."""
        answer = self._asked.get((peer, node))
        if answer is None:
            answer = self._asked[peer, node] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(lambda _: self._asked.pop((peer, node), None))
            self._send(peer, Measure(node))
        try:
            return await asyncio.wait_for(asyncio.shield(answer), timeout_s)
        except TimeoutError:
            answer.cancel()
            return None
        except asyncio.CancelledError:
            if answer.cancelled():
                return None  # somebody else who waited for it gave up
            raise

    def ask_for_renewal(self, peers: Iterable[Peer]) -> bool:
        """Ask one of the peers that may invite for a new certificate. False when there is none."""
        mine = self._vault.credentials
        able = [peer for peer in peers if peer.session.certificate.may_invite]
        if mine is None or not able:
            return False
        # Who holds the key of the mesh is as short a way to it as there is; its own certificate has no authority.
        peer = min(able, key=lambda each: len(each.session.certificate.authority))
        self._renewal_from = peer.node
        self._send(peer.node, Renew(mine.certificate))
        return True

    async def close(self) -> None:
        """Do nothing for anybody any more."""
        for answer in list(self._asked.values()):
            answer.cancel()
        tasks = list(self._busy.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, peer: bytes, kind: type[Any], work: Coroutine[Any, Any, None]) -> None:
        if (peer, kind) in self._busy or len(self._busy) >= AT_ONCE:
            self._counters["favours_refused"] += 1
            work.close()
            return
        task = self._busy[peer, kind] = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._busy.pop((peer, kind), None))

    async def _measure_for(self, peer: bytes, node: bytes) -> None:
        rtt_s = 0.0
        with suppress(MeshnodeError, OSError):
            async with asyncio.timeout(ANSWER_S):
                rtt_s = await self._measure(node)
        self._counters["measured_for_others"] += 1
        self._send(peer, Measured(node, min(MAX_U32, max(1, round(rtt_s * MICROSECONDS))) if rtt_s else 0))

    async def _renew_for(self, peer: bytes, certificate: bytes) -> None:
        try:
            issued = await asyncio.to_thread(self._vault.renew, certificate, peer)
        except (WireError, MeshnodeError) as reason:
            self._counters["renewals_refused"] += 1
            LOG.debug("no new certificate for %s: %s", peer.hex()[:10], reason)
            return
        self._counters["renewals_issued"] += 1
        self._send(peer, Renewed(issued))

    async def _take_renewal(self, certificate: bytes) -> None:
        try:
            await asyncio.to_thread(self._vault.accept_renewal, certificate)
        except (WireError, MeshnodeError) as reason:
            LOG.warning("the new certificate of this node cannot be used: %s", reason)
            return
        LOG.info("the membership of this node has been renewed")
        self._renewed()
