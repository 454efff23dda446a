"""Whether a model fits: here, over several machines, or not; beside the planners that really place it."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.capacity import Lender, about, exact, lenders_of
from meshnode.core.effects import Member
from meshnode.core.placement import Budget, DeviceBudget, Refusal, Wishes, plan_solo
from meshnode.core.split import DeviceFacts, NodeFacts, SplitWishes
from meshnode.core.splitting import decide
from meshnode.models.catalog import DEMO_TARGET
from meshnode.models.gguf import read_model
from meshnode.models.shapes import ModelShape, shape_of
from meshnode.splitting import MeasuredDelays
from meshnode.wire.registry import Role
from meshnode.wire.statements import Device, Dynamic
from tests.models import gguf_samples as samples

MIB, GIB = 1 << 20, 1 << 30
ANY = Wishes()
ME, OTHER = b"\x50" * 32, b"\x60" * 32


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    """A model of about 1 GB in 100 layers; its weights are a hole in the file."""
    path = samples.llama(tmp_path_factory.mktemp("large") / "large.gguf", layers=100)
    return shape_of(read_model(path))


def test_the_demo_fits_and_says_how() -> None:
    shape = shape_of(read_model(DEMO_TARGET))
    found = exact(shape, "chat", Budget(4 * GIB), ANY)
    assert found.verdict == "here"
    assert found.sentence.startswith("fits here: on the processor, context ")
    assert found.as_dict() == {"verdict": "here", "sentence": found.sentence}
    on_gpu = exact(shape, "chat", Budget(4 * GIB, (DeviceBudget("CUDA0", 4 * GIB),)), ANY)
    assert "layers on GPU" in on_gpu.sentence


def test_what_comes_along_counts(large: ModelShape) -> None:
    assert exact(large, "chat", Budget(2 * GIB), ANY).verdict == "here"
    assert exact(large, "chat", Budget(2 * GIB), ANY, extra_host_bytes=GIB).verdict == "no"


def test_so_many_nodes_as_it_takes_the_largest_first(large: ModelShape) -> None:
    here = Budget(700 * MIB)
    small, middle = Lender("a", (300 * MIB,)), Lender("b", (500 * MIB,))
    assert exact(large, "chat", here, ANY).verdict == "no"
    two = exact(large, "chat", here, ANY, lenders=[Lender("c", (GIB,)), small])
    assert two.verdict == "split" and two.sentence.startswith("needs 2 nodes: it takes ")
    three = exact(large, "chat", here, ANY, lenders=[small, middle])
    assert three.sentence.startswith("needs 3 nodes")
    # Two devices of one node are still one node.
    assert exact(large, "chat", here, ANY, lenders=[Lender("d", (500 * MIB, 300 * MIB))]).verdict == "split"


def test_what_the_mesh_does_not_hold_either(large: ModelShape) -> None:
    one, two = Lender("a", (150 * MIB,)), Lender("b", (150 * MIB,))
    found = exact(large, "chat", Budget(500 * MIB), ANY, lenders=[one])
    assert found.verdict == "no" and "what the other node lends (0.1 GiB) is not enough either" in found.sentence
    found = exact(large, "chat", Budget(500 * MIB), ANY, lenders=[one, two])
    assert "the 2 other nodes lend" in found.sentence
    # The embedding stays with the host, whatever others hold.
    assert exact(large, "chat", Budget(MIB), ANY, lenders=[Lender("c", (64 * GIB,))]).verdict == "no"


def test_only_what_writes_text_is_split(large: ModelShape) -> None:
    found = exact(large, "embedding", Budget(500 * MIB), ANY, lenders=[Lender("a", (64 * GIB,))])
    assert found.verdict == "no" and "only models that write text" in found.sentence
    assert "only models" not in exact(large, "rerank", Budget(500 * MIB), ANY).sentence


def test_the_context_that_a_person_fixed_counts(large: ModelShape) -> None:
    lender = [Lender("a", (900 * MIB,))]
    assert exact(large, "chat", Budget(700 * MIB), ANY, lenders=lender).verdict == "split"
    wide = Wishes(context=32768, parallel=4, kv_type="f16")
    assert exact(large, "chat", Budget(700 * MIB), wide, lenders=lender).verdict == "no"


@pytest.mark.parametrize("here_mib", range(400, 1900, 100))
def test_it_says_what_the_planners_say(large: ModelShape, here_mib: int) -> None:
    """Near the limit counting and planning may differ; a tenth of the memory away from it they must not."""
    lent = 600 * MIB
    budget = Budget(here_mib * MIB)
    told = exact(large, "chat", budget, ANY, lenders=[Lender("other", (lent,))]).verdict
    solo = plan_solo(large, budget, ANY)
    assert (told == "here") == (not isinstance(solo, Refusal))

    def planned(factor: float) -> bool:
        def node(name: str, size: int) -> NodeFacts:
            device = DeviceFacts("CPU", size, None, None, "cpu")
            return NodeFacts(name, name, name == "here", (device,), size, name == "here", name != "here")

        nodes = [node("here", round(factor * budget.host_bytes)), node("other", round(factor * lent))]
        decision = decide(large, nodes, MeasuredDelays({("here", "other"): 0.001}), SplitWishes())
        return decision.split is not None or decision.solo is not None

    if planned(0.9):
        assert told in ("here", "split")
    if not planned(1.1):
        assert told == "no"


def test_by_the_size_of_a_file() -> None:
    gpu = Budget(4 * GIB, (DeviceBudget("CUDA0", 8 * GIB),))
    found = about(5 * GIB, "chat", gpu)
    assert (
        found.verdict == "here" and found.sentence == "fits here: it takes about 5.9 GiB of 12.0 GiB that can be used"
    )
    assert about(20 * GIB, "chat", gpu).verdict == "no"
    split = about(20 * GIB, "chat", gpu, [Lender("a", (24 * GIB,))])
    assert split.verdict == "split" and split.sentence.startswith("needs 2 nodes: it takes about 21.6 GiB")
    assert about(20 * GIB, "embedding", gpu, [Lender("a", (24 * GIB,))]).verdict == "no"
    unified = Budget(8 * GIB, (DeviceBudget("MTL0", 8 * GIB),), unified=True)
    assert about(10 * GIB, "chat", unified).verdict == "no"


@pytest.mark.parametrize("size", [0, 1, 63])
def test_sizes_that_cannot_be_are_no_fault(size: int) -> None:
    assert about(size, "chat", Budget(4 * GIB)).verdict == "here"
    assert about(size, "chat", Budget(0)).verdict == "no"


def member(node: bytes = OTHER, devices: tuple[Device, ...] = (), rpc: int = 7, **more: Any) -> Member:
    facts: dict[str, Any] = {
        "state": "alive",
        "role": Role.MEMBER,
        "dynamic": Dynamic(devices or (Device("host", 64 * GIB, 32 * GIB),), rpc=rpc),
        "reachable": True,
        **more,
    }
    return Member(
        node=node,
        incarnation=1,
        identity=None,
        demand=None,
        linked=True,
        rtt_s=None,
        estimated_rtt_s=None,
        since=0.0,
        heard_at=0.0,
        **facts,
    )


def test_who_lends_what() -> None:
    assert lenders_of([member()], ME, 7) == (Lender(OTHER.hex(), (32 * GIB,)),)
    gpus = (Device("host", 64 * GIB, 32 * GIB), Device("CUDA0", 24 * GIB, 20 * GIB), Device("CUDA1", 8 * GIB, 7 * GIB))
    (found,) = lenders_of([member(devices=gpus)], ME, 7)
    assert found.device_bytes == (20 * GIB, 7 * GIB) and found.total_bytes == 27 * GIB


@pytest.mark.parametrize(
    "left_out",
    [
        member(ME),
        member(state="dead"),
        member(reachable=False),
        member(role=Role.CLIENT),
        member(dynamic=None),
        member(rpc=0),
        member(rpc=8),
    ],
)
def test_who_does_not(left_out: Member) -> None:
    assert lenders_of([left_out], ME, 7) == ()
