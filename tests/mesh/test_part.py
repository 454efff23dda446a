import inspect

import pytest

from meshnode.mesh.clients import ClientPart
from meshnode.mesh.member import MemberPart
from meshnode.mesh.part import Part

METHODS = [name for name, found in vars(Part).items() if inspect.isfunction(found) and not name.startswith("_")]


@pytest.mark.parametrize("part", [MemberPart, ClientPart])
@pytest.mark.parametrize("name", METHODS)
def test_both_parts_have_every_method_with_the_same_parameters(part: type, name: str) -> None:
    wanted = inspect.signature(getattr(Part, name)).parameters
    assert list(inspect.signature(getattr(part, name)).parameters) == list(wanted)
    assert inspect.iscoroutinefunction(getattr(part, name)) == inspect.iscoroutinefunction(getattr(Part, name))


def test_a_part_has_something_to_do() -> None:
    assert len(METHODS) > 10
