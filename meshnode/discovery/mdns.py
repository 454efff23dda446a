"""Nodes of one network find each other: DNS service discovery over multicast DNS (RFC 6762, 6763; 08-pairing).

zeroconf has the sockets, the encoding of DNS and the answering of questions. Two of its parts are not used: its browser
schedules a question for each pointer that anybody sends, without a bound, and both it and its resolver overlook a text
that changes back within ten seconds, as that of a code does that is shown twice. Here the records are read as they come
(`services.py`), and one question is asked at growing intervals: every answer carries all records of a service.

zeroconf is imported when the first Lan opens, in a thread: it takes a tenth of a second.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from meshnode.discovery.services import (
    Neighbour,
    Neighbourhood,
    Text,
    day_of,
    lan_hosts,
    mesh_tag,
    new_instance,
    tags_around,
)
from meshnode.errors import StateError

if TYPE_CHECKING:
    from zeroconf import RecordUpdate, ServiceInfo
    from zeroconf.asyncio import AsyncZeroconf

__all__ = ["Lan", "Neighbour", "day_of", "lan_hosts", "mesh_tag"]

SERVICE = "_meshnode._udp.local."
HOST_SUFFIX = ".local."
HOST_TTL_S = 120
SERVICE_TTL_S = 1200
"""For so long a node that crashed is remembered. RFC 6762, 10, proposes 75 min for names that are no hosts."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 600.0
"""Between two questions; half of SERVICE_TTL_S, so that one may get lost."""
TELL_AFTER_S = 0.05
"""What comes within this time is told as one change, so that a flood of packets is no flood of work."""
_IN = 1
_A, _PTR, _TXT, _AAAA, _SRV = 1, 12, 16, 28, 33


class Lan:
    """This node on its networks: announced under a name of the day, and aware of the others. Made by `open`."""

    def __init__(
        self,
        *,
        port: int,
        mesh: bytes | None,
        changed: Callable[[], None],
        clock: Callable[[], float],
        draw: Callable[[int], int],
    ) -> None:
        self._port = port
        self._mesh = mesh
        self._shows_code = False
        self._changed = changed
        self._clock = clock
        self._draw = draw
        self._hosts: frozenset[str] = frozenset()
        self._day = 0
        self._presence: _Presence | None = None
        self._told: tuple[Neighbour, ...] = ()
        self._telling: asyncio.TimerHandle | None = None
        self._moving = asyncio.Lock()
        self._closed = False

    @classmethod
    async def open(
        cls,
        hosts: Sequence[str],
        *,
        port: int,
        mesh: bytes | None,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.time,
        draw: Callable[[int], int] = secrets.randbelow,
    ) -> Lan:
        """Announce `port` on these interface addresses (of `lan_hosts`), and listen there.

        Returns once the sockets are open; the rest goes on by itself. Without hosts nothing is opened until `refresh`
        brings some. `mesh` is the key of the mesh that this node is a member of. `changed` is called in the event loop
        when `neighbours` are others than before. `clock` gives seconds since 1970, `draw(n)` a number below n. Raises
        StateError when none of the hosts can be used.
        """
        lan = cls(port=port, mesh=mesh, changed=changed, clock=clock, draw=draw)
        await lan.refresh(hosts)
        return lan

    @property
    def instance(self) -> str:
        """The name under which this node is announced now; "" while it is not."""
        return "" if self._presence is None else self._presence.instance

    @property
    def neighbours(self) -> tuple[Neighbour, ...]:
        """The others that are announced on these networks; hints of where to dial, which anybody may have sent."""
        return () if self._presence is None else self._presence.around.neighbours

    async def announce(self, *, mesh: bytes | None, shows_code: bool) -> None:
        """Say from now on that this node is a member of that mesh, and whether it waits for a guest.

        Returns at once: what is said changes at most twice a second.
        """
        self._mesh, self._shows_code = mesh, shows_code
        self._say()

    async def refresh(self, hosts: Sequence[str]) -> None:
        """Look at the date and at the hosts: if either is another one, begin anew under a new name.

        To be called every few minutes, also after it has failed. Raises StateError as `open`; then nothing is announced
        and nobody is a neighbour, until the next call.
        """
        async with self._moving:
            day = day_of(self._clock())
            missing = bool(hosts) and self._presence is None
            if self._closed or (day == self._day and frozenset(hosts) == self._hosts and not missing):
                return
            await self._leave()
            self._day, self._hosts = day, frozenset(hosts)
            if hosts:
                self._presence = await _Presence.open(
                    list(dict.fromkeys(hosts)), self._port, self._text(), noticed=self._noticed, draw=self._draw
                )
                self._say()

    async def close(self) -> None:
        """Say goodbye, a quarter of a second long, and close the sockets."""
        self._closed = True
        async with self._moving:
            await self._leave()
        if self._telling is not None:
            self._telling.cancel()

    async def _leave(self) -> None:
        presence, self._presence = self._presence, None
        if presence is not None:
            self._noticed()
            await presence.close()

    def _say(self) -> None:
        if self._presence is not None:
            self._presence.around.tags = tags_around(self._mesh, self._day)
            self._presence.say(self._text())
            self._noticed()

    def _text(self) -> Text:
        return Text("" if self._mesh is None else mesh_tag(self._mesh, self._day), self._shows_code)

    def _noticed(self) -> None:
        if self._telling is None and not self._closed:
            self._telling = asyncio.get_running_loop().call_later(TELL_AFTER_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        if self.neighbours != self._told:
            self._told = self.neighbours
            self._changed()


class _Presence:
    """One name on one set of interfaces, from the first announcement to the goodbye."""

    def __init__(self, dns: AsyncZeroconf, hosts: list[str], port: int, text: Text, instance: str) -> None:
        self.instance = instance
        self.around = Neighbourhood(instance, loopback=any(host.startswith("127.") for host in hosts))
        self._dns = dns
        self._hosts = hosts
        self._port = port
        self._text = text
        self._renewed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls,
        hosts: list[str],
        port: int,
        text: Text,
        *,
        noticed: Callable[[], None],
        draw: Callable[[int], int],
    ) -> _Presence:
        """Open the sockets, and begin to announce and to ask. Raises StateError."""
        await asyncio.to_thread(_import_zeroconf)
        from zeroconf import NotRunningException
        from zeroconf.asyncio import AsyncZeroconf

        usable = [host for host in hosts if _can_bind(host)]
        if not usable:
            raise _no_sockets(hosts, "no such address here")
        try:
            dns = AsyncZeroconf(interfaces=usable)
            await dns.zeroconf.async_wait_for_start()
        except (OSError, RuntimeError, NotRunningException) as error:
            raise _no_sockets(hosts, str(error)) from None
        if not dns.zeroconf.engine.senders:
            await dns.async_close()
            raise _no_sockets(hosts, "no multicast there")
        presence = cls(dns, usable, port, text, new_instance(draw))
        _read_records(dns, presence.around, noticed)
        presence._tasks = [asyncio.create_task(presence._speak()), asyncio.create_task(presence._ask(draw))]
        return presence

    def say(self, text: Text) -> None:
        """Announce this text from now on."""
        self._text = text
        self._renewed.set()

    async def close(self) -> None:
        """Say goodbye, and close the sockets."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._drop_answers()
        try:
            # The first await takes the service out, the second one waits until three goodbyes are sent.
            await (await self._dns.async_unregister_service(self._service(self._text)))
        finally:
            await self._dns.async_close()

    async def _speak(self) -> None:
        said = self._text
        # Names of 40 random bits need no probing, which would take a second.
        sent = await self._dns.async_register_service(self._service(said), cooperating_responders=True)
        while True:
            # All three times in 0.45 s: within a second, receivers ignore the same packet, as after a change and back.
            await sent
            while said == self._text:
                self._renewed.clear()
                await self._renewed.wait()
            said = self._text
            self._drop_answers()
            sent = await self._dns.async_update_service(self._service(said))

    def _drop_answers(self) -> None:
        """Answers wait for up to 1.2 s and would then tell the old text, or revive a service that has said goodbye.

        Nobody misses them: what is announced instead reaches everybody who asked.
        """
        self._dns.zeroconf.out_queue.queue.clear()
        self._dns.zeroconf.out_delay_queue.queue.clear()

    async def _ask(self, draw: Callable[[int], int]) -> None:
        """RFC 6762, 5.2: a first question after 20 to 120 ms, then at doubling intervals.

        Never for a unicast answer: of two responders on one machine, either may get it. The only answer that it calls
        known is our own, so that the others come anew with all their records.
        """
        from zeroconf import DNSOutgoing, DNSQuestion  # type: ignore[attr-defined]  # not in its __all__

        await asyncio.sleep((20 + draw(100)) / 1000)
        own = self._service(self._text).dns_pointer()
        pause_s = FIRST_PAUSE_S
        while True:
            question = DNSOutgoing(0)
            question.add_question(DNSQuestion(SERVICE, _PTR, _IN))
            question.add_answer_at_time(own, 0)
            self._dns.zeroconf.async_send(question)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _service(self, text: Text) -> ServiceInfo:
        from zeroconf import ServiceInfo

        return ServiceInfo(
            SERVICE,
            f"{self.instance}.{SERVICE}",
            port=self._port,
            properties=text.encode(),
            server=self.instance + HOST_SUFFIX,
            host_ttl=HOST_TTL_S,
            other_ttl=SERVICE_TTL_S,
            parsed_addresses=self._hosts,
        )


def _import_zeroconf() -> None:
    import zeroconf.asyncio

    # It warns of what others send; that is nothing that the one at this terminal could mend.
    logging.getLogger(zeroconf.__name__).propagate = False


def _can_bind(host: str) -> bool:
    """Whether this machine has the address; the package gives up all interfaces when one has gone."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _no_sockets(hosts: Sequence[str], reason: str) -> StateError:
    return StateError(
        f"multicast DNS is not possible on {', '.join(hosts)} ({reason})",
        fix="other nodes of this network are not found by themselves: join with an invite",
    )


def _read_records(dns: AsyncZeroconf, around: Neighbourhood, noticed: Callable[[], None]) -> None:
    """Hand every record that comes in, or runs out, to `around`."""
    from zeroconf import RecordUpdateListener, Zeroconf

    class Reader(RecordUpdateListener):
        def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
            # A pointer makes room for the other records of its service, wherever in the packet it stands.
            pointers = [update for update in records if update.new.type == _PTR]
            others = [update for update in records if update.new.type != _PTR]
            if any([_take(around, update.new, now) for update in [*pointers, *others]]):
                noticed()

        def async_update_records_complete(self) -> None:
            """Records are read before they are in the package's cache, which is not used."""

    dns.zeroconf.async_add_listener(Reader(), None)


def _take(around: Neighbourhood, record: Any, now: float) -> bool:
    """Whether the record says anything new. Only a pointer ends: the others are as good as it is."""
    name: str = record.name.lower()
    if record.type == _PTR:
        if name != SERVICE:
            return False
        instance = _without(record.alias.lower(), "." + SERVICE)
        return around.left(instance) if record.is_expired(now) else around.pointed(instance)
    if record.is_expired(now):
        return False
    if record.type in (_A, _AAAA):
        return around.lives(_without(name, HOST_SUFFIX), record.address)
    instance = _without(name, "." + SERVICE)
    if record.type == _SRV and record.server.lower() == instance + HOST_SUFFIX:
        return around.served(instance, record.port)
    return record.type == _TXT and around.said(instance, record.text)


def _without(name: str, suffix: str) -> str:
    """The name before the suffix; "", which is nobody's, where it has another one."""
    return name[: -len(suffix)] if name.endswith(suffix) else ""
