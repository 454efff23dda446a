"""One chain in this process for all tests of the contracts; each test begins where the parties have just met."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.parties import Parties, gathered
from tests.lab.evm import deployed, in_process


@pytest.fixture(scope="session")
def met() -> Parties:
    return gathered(deployed(in_process()))


@pytest.fixture
def parties(met: Parties) -> Iterator[Parties]:
    tester = met.contracts.web3.provider.ethereum_tester  # type: ignore[attr-defined]
    before = tester.take_snapshot()
    yield met
    tester.revert_to_snapshot(before)
