import pytest

from meshnode.net.stream import LinkLost
from meshnode.rpc.flow import Flow
from tests.net.nodes import linked, read_all, until

pytestmark = pytest.mark.anyio


class Source:
    """Counts how it is paused and resumed."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.errors: list[OSError] = []

    def flow(self, stream: object) -> Flow:
        return Flow(
            stream,  # type: ignore[arg-type]
            pause=lambda: self.told.append("pause"),
            resume=lambda: self.told.append("resume"),
            broke=self.errors.append,
        )


async def test_a_source_is_paused_until_the_peer_has_taken_enough() -> None:
    async with linked() as (_, other, link, _far):
        source = Source()
        flow = source.flow(link.open_stream())
        flow.write(b"few")
        assert source.told == []
        written = 0
        while written < 32 << 20 and source.told[-1:] != ["pause"]:
            flow.write(bytes(1 << 20))
            written += 1 << 20
        far = await other.stream()
        assert source.told == ["pause"]
        flow._stream.write_eof()
        assert len(await read_all(far)) == 3 + written
        await until(lambda: source.told == ["pause", "resume"])
        assert source.errors == []


async def test_a_stream_that_is_gone_is_told_once_for_each_write_and_wakes_the_source() -> None:
    async with linked() as (_, _other, link, _far):
        source = Source()
        flow = source.flow(link.open_stream())
        flow.write(bytes(8 << 20))
        link.close(0x100)
        await until(lambda: source.told == ["pause", "resume"])
        flow.write(b"late")
        assert source.errors and all(isinstance(error, LinkLost) for error in source.errors)
        flow.close()
        with pytest.raises(OSError):
            await flow.drain()
