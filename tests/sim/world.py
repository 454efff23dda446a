"""A network with a virtual clock, in which many membership machines run: same seed, same run.

Delays are those of nodes in eight regions (a distance, an access line each, jitter; round trips of 20 to 200 ms).
Datagrams may be lost, singly or in bursts; what is reliable is sent again after a timeout, as QUIC does, and stays in
order. Nodes can crash, stand still and leave; ways can be cut in one or both directions. Bytes are counted as they
leave: payload plus 58 for IP, UDP, QUIC and frame heads of a datagram, and 55 for each acknowledgement that nothing
else carries, apart.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from meshnode.core.effects import Close, Counted, Dial, MemberChanged, SaveIncarnation, Send, SetTimer
from meshnode.core.events import DialFailed, LeaveAsked, PeerDown, PeerUp, Received, TimerFired
from meshnode.core.members import Shared
from meshnode.core.membership import Membership, MembershipOptions
from meshnode.wire import messages
from meshnode.wire.address import Address
from meshnode.wire.messages import encode_message
from meshnode.wire.registry import Role
from meshnode.wire.statements import Statement, read

DATAGRAM_BYTES = 58
ACK_BYTES = 55
FRAME_BYTES = 6
PAYLOAD_A_DATAGRAM = 1200
HANDSHAKE_BYTES = 3600
IDLE_TIMEOUT_S = 30.0
DIAL_TIMEOUT_S = 5.0
DECODED = 200_000


class Loss:
    """Whether a datagram is lost: independently with probability `rate`, or in bursts (Gilbert 1960) of that rate."""

    def __init__(self, rate: float, burst: float = 1.0) -> None:
        self.rate = rate
        self.burst = burst
        self._bad: dict[tuple[int, int], bool] = {}

    def strikes(self, way: tuple[int, int], chance: random.Random) -> bool:
        if not self.rate:
            return False
        if self.burst <= 1:
            return chance.random() < self.rate
        bad = self._bad.get(way, False)
        leave, enter = 1 / self.burst, self.rate / (1 - self.rate) / self.burst
        bad = chance.random() >= leave if bad else chance.random() < enter
        self._bad[way] = bad
        return bad


class Node:
    """A machine in the world, and what the world knows of it."""

    def __init__(self, index: int, name: bytes, machine: Membership) -> None:
        self.index = index
        self.name = name
        self.machine = machine
        self.up = True
        self.still_until = 0.0
        self.timer_at: float | None = None
        self.incarnation = 1
        self.links: set[int] = set()
        self.counted: Counter[str] = Counter()
        self.sent_bytes = 0
        self.ack_bytes = 0
        self.sent_datagrams = 0
        self.sent_kinds: Counter[str] = Counter()


class World:
    """The clock, the ways and the nodes. `watch(node, peer, state, at)` hears of every change that a machine tells."""

    def __init__(
        self,
        seed: int,
        *,
        loss: float = 0.0,
        burst: float = 1.0,
        lan: bool = False,
        options: MembershipOptions | None = None,
    ) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.loss = Loss(loss, burst)
        self.lan = lan
        self.options = options or MembershipOptions()
        self.nodes: list[Node] = []
        self.by_name: dict[bytes, Node] = {}
        self.watch: Callable[[Node, bytes, str, float], None] | None = None
        self.blocked: Callable[[int, int], bool] | None = None
        self.events = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._places: list[tuple[float, float, float]] = []
        self._regions = [(self.chance.random() * 0.08, self.chance.random() * 0.05) for _ in range(8)]
        self._arrived: dict[tuple[int, int], float] = {}
        self._cut_since: dict[tuple[int, int], float] = {}
        self._held: list[tuple[Node, Node, Any]] = []
        self._decoded: OrderedDict[bytes, Statement] = OrderedDict()
        self._sized: tuple[Any, int] = (None, 0)
        self._admitted: Callable[[Statement], Role | None] = lambda _: Role.MEMBER

    # --- nodes --------------------------------------------------------------------------------------------------

    def name(self, index: int) -> bytes:
        """The id of a node; ids have no order that tells of the index."""
        return blake2b(f"{self.seed}/{index}".encode(), digest_size=32).digest()

    def address(self, index: int) -> Address:
        return Address(f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}", 9337)

    def add(self, *, incarnation: int = 1, index: int | None = None, shared: Shared | None = None) -> Node:
        """A new node, or the next life of a crashed one."""
        again = index is not None
        index = len(self.nodes) if index is None else index
        name = self.name(index)
        machine = Membership(
            node=name,
            incarnation=incarnation,
            sign=lambda message: signature(name, message),
            verify=lambda key, given, message: given == signature(key, message),
            admit=self._admitted,
            random=random.Random(self.chance.random()),
            now=self.now,
            options=self.options,
            shared=shared,
            decode=self.decode,
        )
        node = Node(index, name, machine)
        node.incarnation = incarnation
        if again:
            self.nodes[index] = node
        else:
            self.nodes.append(node)
            self._places.append(self._place())
        self.by_name[name] = node
        return node

    def decode(self, signed: bytes) -> Statement:
        """Every statement is read once for all machines."""
        found = self._decoded.get(signed)
        if found is None:
            found = self._decoded[signed] = read(signed)
            if len(self._decoded) > DECODED:
                self._decoded.popitem(last=False)
        return found

    # --- time ---------------------------------------------------------------------------------------------------

    def at(self, at: float, call: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._queue, (at, self._count, call, arguments))

    def run(self, for_s: float) -> None:
        """Let time pass."""
        until = self.now + for_s
        queue = self._queue
        while queue and queue[0][0] <= until:
            at, _, call, arguments = heapq.heappop(queue)
            self.now = max(at, self.now)
            call(*arguments)
        self.now = until

    def give(self, node: Node, event: Any) -> None:
        """An event for a machine, now, or when it no longer stands still."""
        if not node.up:
            return
        if node.still_until > self.now:
            self.at(node.still_until, self.give, node, event)
            return
        self.events += 1
        for effect in node.machine.handle(event, self.now):
            self._carry_out(node, effect)

    def _carry_out(self, node: Node, effect: Any) -> None:
        match effect:
            case Send(peer, message, reliable):
                self._send(node, self.by_name[peer], message, reliable)
            case SetTimer(key, at):
                node.timer_at = at
                self.at(at, self._fire, node, key, at)
            case Counted(what):
                node.counted[what] += 1
            case MemberChanged(peer, state):
                if self.watch is not None:
                    self.watch(node, peer, state, self.now)
            case Dial(peer, _):
                self._dial(node, self.by_name[peer])
            case Close(peer, _):
                self.unlink(node.index, self.by_name[peer].index)
            case SaveIncarnation(value):
                assert value > node.incarnation
                node.incarnation = value

    def _fire(self, node: Node, key: Any, at: float) -> None:
        if node.timer_at != at or not node.up:
            return
        if node.still_until > self.now:
            self.at(node.still_until, self._fire, node, key, at)
            return
        node.timer_at = None
        self.give(node, TimerFired(key))

    # --- ways ---------------------------------------------------------------------------------------------------

    def _place(self) -> tuple[float, float, float]:
        chance, region = self.chance, self.chance.choice(self._regions)
        return region[0] + chance.gauss(0, 0.006), region[1] + chance.gauss(0, 0.006), chance.expovariate(250) + 0.001

    def delay_s(self, one: int, other: int) -> float:
        """One way, with jitter."""
        if self.lan:
            return 0.0005 + self.chance.expovariate(5000)
        return self.least_delay_s(one, other) + self.chance.expovariate(500)

    def least_delay_s(self, one: int, other: int) -> float:
        """One way, without jitter."""
        if self.lan:
            return 0.0005
        here, there = self._places[one], self._places[other]
        return math.hypot(here[0] - there[0], here[1] - there[1]) + here[2] + there[2]

    def _is_cut(self, one: int, other: int) -> bool:
        return self.blocked is not None and self.blocked(one, other)

    def _size(self, message: Any) -> int:
        if message is not self._sized[0]:
            self._sized = (message, FRAME_BYTES + size_bytes(message))
        return self._sized[1]

    def _send(self, node: Node, to: Node, message: Any, reliable: bool) -> None:
        if to.index not in node.links:
            return
        size = self._size(message)
        datagrams = max(1, -(-size // PAYLOAD_A_DATAGRAM))
        self._count_sent(node, size, datagrams)
        node.sent_kinds[type(message).__name__] += size + datagrams * DATAGRAM_BYTES
        way = (node.index, to.index)
        delay_s = self.delay_s(*way)
        cut = self._is_cut(*way)
        if not reliable:
            if not cut and not self.loss.strikes(way, self.chance):
                self.at(self.now + delay_s, self._arrive, node, to, message, False)
            return
        timeout_s = 2.2 * self.least_delay_s(*way) + 0.03
        while self.loss.strikes(way, self.chance) and not cut:
            delay_s += timeout_s
            timeout_s *= 1.5
            self._count_sent(node, size, datagrams)
        at = max(self.now + delay_s, self._arrived.get(way, 0.0) + 1e-6)
        self._arrived[way] = at
        self.at(at, self._arrive, node, to, message, True)

    def _count_sent(self, node: Node, size: int, datagrams: int) -> None:
        node.sent_bytes += size + datagrams * DATAGRAM_BYTES
        node.sent_datagrams += datagrams

    def _arrive(self, node: Node, to: Node, message: Any, reliable: bool) -> None:
        if to.index not in node.links or node.index not in to.links:
            return
        if reliable and self._is_cut(node.index, to.index):
            self._held.append((node, to, message))
            return
        if not isinstance(message, messages.Probe):  # the answer to a probe carries its acknowledgement
            to.ack_bytes += ACK_BYTES
        self.give(to, Received(node.name, message))

    # --- links --------------------------------------------------------------------------------------------------

    def _dial(self, node: Node, to: Node) -> None:
        self._count_sent(node, HANDSHAKE_BYTES // 2, 2)
        rounds_s = 3 * (self.delay_s(node.index, to.index) + self.delay_s(to.index, node.index)) / 2
        for _ in range(4):
            if self.loss.strikes((node.index, to.index), self.chance):
                rounds_s += 0.3
        self.at(self.now + rounds_s, self._dialled, node, to, self.now + DIAL_TIMEOUT_S)

    def _dialled(self, node: Node, to: Node, until: float) -> None:
        cut = self._is_cut(node.index, to.index) or self._is_cut(to.index, node.index)
        if to.up and node.up and not cut and to.still_until <= self.now:
            self._count_sent(to, HANDSHAKE_BYTES // 2, 2)
            self.link(node.index, to.index)
        elif self.now < until and node.up:
            self.at(min(until, self.now + 1.0), self._dialled, node, to, until)
        else:
            self.give(node, DialFailed(to.name))

    def link(self, one: int, other: int) -> None:
        """Both sides have a link, from now on."""
        if other in self.nodes[one].links and one in self.nodes[other].links:
            return
        self.unlink(one, other)  # what is left of a link to an earlier life
        rtt_s = 2 * self.least_delay_s(one, other)
        self.nodes[one].links.add(other)
        self.nodes[other].links.add(one)
        self._arrived.pop((one, other), None)
        self._arrived.pop((other, one), None)
        self.give(self.nodes[one], PeerUp(self.nodes[other].name, rtt_s))
        self.give(self.nodes[other], PeerUp(self.nodes[one].name, rtt_s))

    def unlink(self, one: int, other: int) -> None:
        """The link is gone; both sides notice if they can."""
        for here, there in ((one, other), (other, one)):
            if there in self.nodes[here].links:
                self.nodes[here].links.discard(there)
                self.give(self.nodes[here], PeerDown(self.nodes[there].name))

    # --- misfortunes --------------------------------------------------------------------------------------------

    def crash(self, index: int) -> None:
        """A node is gone without a word; the transport of the others notices after its idle timeout."""
        node = self.nodes[index]
        node.up = False
        for other in node.links:
            self.at(self.now + IDLE_TIMEOUT_S, self._time_out, other, index)
        node.links = set()

    def _time_out(self, one: int, other: int) -> None:
        if other in self.nodes[one].links and one not in self.nodes[other].links:
            self.nodes[one].links.discard(other)
            self.give(self.nodes[one], PeerDown(self.nodes[other].name))

    def leave(self, index: int) -> None:
        """A node says farewell, then closes its links."""
        self.give(self.nodes[index], LeaveAsked())
        self.at(self.now + 0.5, self._close, index)

    def _close(self, index: int) -> None:
        node = self.nodes[index]
        for other in list(node.links):
            self.unlink(index, other)
        node.up = False

    def stand_still(self, index: int, for_s: float) -> None:
        """The process of a node is stopped for a while; what comes in waits for it."""
        self.nodes[index].still_until = max(self.nodes[index].still_until, self.now + for_s)

    def cut(self, blocked: Callable[[int, int], bool]) -> None:
        """Nothing gets from one to the other where `blocked(one, other)`. Links that are cut time out after a while."""
        self.blocked = blocked
        for node in self.nodes:
            for other in node.links:
                if node.index < other and blocked(node.index, other) and blocked(other, node.index):
                    self.at(self.now + IDLE_TIMEOUT_S, self._time_out_cut, node.index, other)

    def _time_out_cut(self, one: int, other: int) -> None:
        if self._is_cut(one, other):
            self.unlink(one, other)

    def heal(self) -> None:
        """All ways are open again."""
        self.blocked = None
        held, self._held = self._held, []
        for node, to, message in held:
            self.at(self.now + 1.0, self._arrive, node, to, message, True)


def signature(key: bytes, message: bytes) -> bytes:
    """In place of Ed25519: as long, and as bound to key and message, but made by anyone."""
    return blake2b(message, key=key, digest_size=64).digest()


def size_bytes(message: Any) -> int:
    """The size of a message as it is encoded; the frequent ones are not encoded for that."""
    if isinstance(message, messages.Statements):
        heads = 3 if len(message.statements) < 16 else 5
        return heads + sum(len(each) + (3 if len(each) > 255 else 2) for each in message.statements)
    if isinstance(message, messages.IHave):
        return 2 + (1 if len(message.ids) < 16 else 3) + 12 * len(message.ids)
    if isinstance(message, messages.ProbeAck) and message.coordinate is not None:
        return 40
    if isinstance(message, messages.Probe | messages.ProbeAck):
        return 5
    return len(encode_message(message))
