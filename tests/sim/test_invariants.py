"""Any order of misfortunes, and what must hold in all of them: a small world, driven by hypothesis."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshnode.core.events import Learned, Publish
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.messages import PeerEntry
from tests.sim.meshes import agree, identity, load, settled
from tests.sim.world import Node, World

COUNT = 7
INDEX = st.integers(0, COUNT - 1)
OPTIONS = MembershipOptions()
SMALL_MESH = MembershipOptions(full_mesh=4, back_to_full_mesh=3, random_neighbours=3, near_neighbours=1)


class Misfortunes(RuleBasedStateMachine):
    """Nodes crash, return, leave, stand still; ways are cut and lose. At the end all is quiet, and all agree."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(0)
        self.lives = [1] * COUNT
        self.buried: dict[tuple[int, bytes], int] = {}
        self.began_at = 0.0

    @initialize(seed=st.integers(0, 1 << 16), small=st.booleans())
    def begin(self, seed: int, small: bool) -> None:
        self.world = World(seed, options=SMALL_MESH if small else OPTIONS)
        settled(self.world, COUNT, degree=4)
        self.began_at = self.world.now
        self.world.watch = self.watch

    def watch(self, node: Node, peer: bytes, state: str, at: float) -> None:
        member = node.machine._context.members.get(peer)
        assert member is not None
        key = (id(node), peer)
        if state in ("dead", "left"):
            self.buried[key] = member.incarnation
        elif key in self.buried:
            assert member.incarnation > self.buried.pop(key), f"seed {self.world.seed}: back in the same incarnation"

    @rule(index=INDEX)
    def crash(self, index: int) -> None:
        if self.world.nodes[index].up and sum(node.up for node in self.world.nodes) > 2:
            self.world.crash(index)

    @rule(index=INDEX)
    def leave(self, index: int) -> None:
        if self.world.nodes[index].up and sum(node.up for node in self.world.nodes) > 2:
            self.world.leave(index)
            self.world.run(0.6)

    @rule(index=INDEX)
    def come_back(self, index: int) -> None:
        if self.world.nodes[index].up:
            return
        incarnation = self.world.nodes[index].incarnation + 1
        node = self.world.add(index=index, incarnation=incarnation)
        self.world.give(node, Publish(identity(self.world, index)))
        self.world.give(node, Publish(load()))
        book = (PeerEntry(self.world.name(other), (self.world.address(other),)) for other in range(COUNT))
        self.world.give(node, Learned(tuple(book)))
        self.world.link(index, next(other.index for other in self.world.nodes if other.up and other is not node))

    @rule(index=INDEX, for_s=st.floats(0.1, 9.0))
    def stand_still(self, index: int, for_s: float) -> None:
        self.world.stand_still(index, for_s)

    @rule(index=INDEX, busy=st.integers(0, 4))
    def publish(self, index: int, busy: int) -> None:
        self.world.give(self.world.nodes[index], Publish(load(busy)))

    @rule(ways=st.frozensets(st.tuples(INDEX, INDEX), max_size=12))
    def cut_some_ways(self, ways: frozenset[tuple[int, int]]) -> None:
        self.world.cut(lambda one, other: (one, other) in ways)

    @rule(middle=st.integers(1, COUNT - 1))
    def cut_in_two(self, middle: int) -> None:
        self.world.cut(lambda one, other: (one < middle) != (other < middle))

    @precondition(lambda self: self.world.blocked is not None)
    @rule()
    def heal(self) -> None:
        self.world.heal()

    @rule(rate=st.sampled_from([0.0, 0.1, 0.3]), burst=st.sampled_from([1.0, 4.0]))
    def lose(self, rate: float, burst: float) -> None:
        self.world.loss.rate, self.world.loss.burst = rate, burst

    @rule(for_s=st.floats(0.1, 20.0))
    def wait(self, for_s: float) -> None:
        self.world.run(for_s)

    @invariant()
    def nothing_grows(self) -> None:
        for node in self.world.nodes:
            machine = node.machine
            assert len(machine._context.members) <= COUNT
            assert machine._context.members.statement_count <= 6 * COUNT
            assert len(machine._context.deadlines) <= 12 + 4 * COUNT
            assert len(machine._intake._waiting) == 0
            seconds = self.world.now - self.began_at
            assert node.sent_bytes <= 250_000 + 12_000 * seconds, f"seed {self.world.seed}: too talkative"

    def teardown(self) -> None:
        """Quiet: the ways are open, nobody stands still. Within six minutes all who are up agree on each other."""
        if not self.world.nodes:
            return
        self.world.heal()
        self.world.loss.rate = 0.0
        for node in self.world.nodes:
            node.still_until = 0.0
        up = [node.index for node in self.world.nodes if node.up]
        for _ in range(70):
            self.world.run(5)
            if agree(self.world, up) and self.all_gone_are_known():
                return
        states = [
            {record.node[:2].hex(): record.state for record in self.world.nodes[index].machine._context.members}
            for index in up
        ]
        raise AssertionError(f"seed {self.world.seed}: no agreement: {states}")

    def all_gone_are_known(self) -> bool:
        down = {node.name for node in self.world.nodes if not node.up}
        for node in self.world.nodes:
            records = node.machine._context.members
            if node.up and any(record.node in down and not record.is_gone for record in records):
                return False
        return True


Misfortunes.TestCase.settings = settings(max_examples=40, stateful_step_count=14, deadline=None)
TestMisfortunes = Misfortunes.TestCase
