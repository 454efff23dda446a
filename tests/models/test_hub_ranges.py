"""Ranges of files on the hub: the right bytes, or words."""

from __future__ import annotations

import pytest
from loopback_hub import COMMIT, LoopbackHub, noise

from meshnode.errors import DownloadStopped, HubUnreachable, ModelNotFound
from meshnode.models.hub import Hub
from meshnode.models.hub_ranges import HubFiles, read_range

FILES = HubFiles("owner/model", COMMIT, ("a.gguf", "sub/b.gguf"))
CONTENT = {"a.gguf": noise(300_000), "sub/b.gguf": noise(200_000, seed=2)}


@pytest.fixture
def hub(hub_server: LoopbackHub) -> Hub:
    hub_server.add("owner/model", CONTENT)
    return Hub(hub_server.endpoint, timeout_s=5)


@pytest.mark.parametrize(("part", "start", "end"), [(0, 0, 300_000), (0, 0, 1), (1, 70_000, 170_001), (1, 1, 200_000)])
def test_the_bytes_of_a_range(hub: Hub, part: int, start: int, end: int) -> None:
    counted: list[int] = []
    found = read_range(hub, FILES, part, start, end, heard=counted.append)
    assert found == CONTENT[FILES.names[part]][start:end]
    assert sum(counted) == end - start


def test_a_hub_that_ends_early(hub: Hub, hub_server: LoopbackHub) -> None:
    hub_server.repositories["owner/model"].drops = [1000]
    with pytest.raises(HubUnreachable):
        read_range(hub, FILES, 0, 0, 100_000)


def test_a_hub_that_ignores_ranges(hub: Hub, hub_server: LoopbackHub) -> None:
    hub_server.repositories["owner/model"].ignores_ranges = True
    with pytest.raises(HubUnreachable, match="another part"):
        read_range(hub, FILES, 0, 100, 200)


def test_a_range_behind_the_end(hub: Hub) -> None:
    with pytest.raises(HubUnreachable, match="less than"):
        read_range(hub, FILES, 0, 299_000, 301_000)


def test_it_can_be_stopped(hub: Hub) -> None:
    with pytest.raises(DownloadStopped):
        read_range(hub, FILES, 0, 0, 300_000, cancelled=lambda: True)


def test_a_file_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(ModelNotFound):
        read_range(hub, HubFiles("owner/model", COMMIT, ("none.gguf",)), 0, 0, 1)
