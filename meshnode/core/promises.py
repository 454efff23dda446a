"""Memory that this node has promised to splits of others: how much is left, and what a plan would take of it.

A promise is made before anything starts, and counts until all of it has been freed, so that two plans that are judged
in the same moment never both get the last gigabyte. Devices go by the engine's names, main memory by HOST. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from meshnode.core.placement import HOST, Budget
from meshnode.wire.splits import DeviceNeed


@dataclass(frozen=True, slots=True)
class Shortage:
    """The first device with too little: what was asked of it, what it has, and what all asked devices have."""

    device: str
    needed_bytes: int
    free_bytes: int
    all_free_bytes: int


class Promises:
    """What was promised, by plan and device."""

    def __init__(self) -> None:
        self._plans: dict[bytes, dict[str, int]] = {}

    def usable_bytes(
        self, budget: Budget, *, taken: Mapping[str, int], unified: Collection[str] = ()
    ) -> dict[str, int]:
        """What could still be promised, by device, after `taken` of this node's own models and all promises.

        `unified` devices share their bytes with HOST: what one of them holds is missing in all.
        """
        held = Counter(taken)
        held.update(self.total_bytes())
        shared = {*unified, HOST} if unified else set()
        held_by_shared = sum(held[name] for name in shared)
        found = {device.name: device.usable_bytes for device in budget.devices} | {HOST: budget.host_bytes}
        return {name: max(0, size - (held_by_shared if name in shared else held[name])) for name, size in found.items()}

    def make(self, plan: bytes, needs: Mapping[str, int], usable: Mapping[str, int]) -> Shortage | None:
        """Keep memory for a plan; None when there was enough of it, and nothing is kept otherwise."""
        for name, needed in needs.items():
            free = usable.get(name, 0)
            if needed > free:
                return Shortage(name, needed, free, sum(usable.get(each, 0) for each in needs))
        self._plans[plan] = dict(needs)
        return None

    def end(self, plan: bytes) -> None:
        """All of it is free again."""
        self._plans.pop(plan, None)

    def of(self, plan: bytes) -> dict[str, int]:
        """What was promised to a plan."""
        return dict(self._plans.get(plan, {}))

    def total_bytes(self) -> dict[str, int]:
        """What all plans together were promised, by device."""
        total: Counter[str] = Counter()
        for needs in self._plans.values():
            total.update(needs)
        return dict(total)


def needs_of(devices: Sequence[DeviceNeed], needed_bytes: int, lent: Sequence[str]) -> dict[str, int] | None:
    """Bytes by device, in the order of the ask: `devices` count those in `lent`. Without any, all of `lent` share
    `needed_bytes` evenly. None for what makes no sense: a device that is not lent, or named twice, or more for the
    devices than in all.
    """
    if not devices:
        share, rest = divmod(needed_bytes, len(lent))
        return {name: share + (rest if number == 0 else 0) for number, name in enumerate(lent)}
    needs: dict[str, int] = {}
    for need in devices:
        if need.device >= len(lent) or lent[need.device] in needs:
            return None
        needs[lent[need.device]] = need.needed_bytes
    return needs if sum(needs.values()) <= needed_bytes else None
