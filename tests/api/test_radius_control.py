from __future__ import annotations

import pytest

from meshnode.api.radius_control import RadiusControl, radius_commands
from meshnode.core.radius import RADII
from meshnode.errors import BadRequest

pytestmark = pytest.mark.anyio


async def test_the_setting_holds_until_it_is_changed_and_a_change_is_told_once() -> None:
    told: list[str] = []
    control = RadiusControl("trusted", changed=lambda: told.append(control()))
    [(path, act)] = radius_commands(control).items()
    assert (path, control()) == ("/api/radius", "trusted")
    assert await act({"radius": "public"}) == {"radius": "public", "before": "trusted"}
    assert await act({"radius": "public", "more": 1}) == {"radius": "public", "before": "public"}
    assert await act({"radius": "local"}) == {"radius": "local", "before": "public"}
    assert control() == "local" and told == ["public", "local"]


@pytest.mark.parametrize("radius", [None, "", "Public", "world", 1, True, ["public"], {"radius": "public"}])
async def test_anything_else_is_refused_and_changes_nothing(radius: object) -> None:
    control = RadiusControl("local", changed=lambda: pytest.fail("told of a change"))
    with pytest.raises(BadRequest, match="local, trusted, public"):
        await control.change({"radius": radius})
    with pytest.raises(BadRequest):
        await control.change({})
    assert control() == "local"


def test_a_setting_that_is_no_radius_starts_nothing() -> None:
    assert [RadiusControl(radius)() for radius in RADII] == list(RADII)
    with pytest.raises(ValueError, match="everyone"):
        RadiusControl("everyone")
