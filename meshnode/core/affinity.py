"""Which hosts probably still hold the keys and values of a conversation, so that they need not compute them again.

A conversation is known by cumulative 64-bit hashes of its leading messages, the longest prefix last: two of them share
their first n hashes exactly when they share their first n messages. llama-server keeps the cache of a slot after the
answer, so the host that answered the last turn reads only what is new. The table is a guess, never a promise: a wrong
entry costs one prediction.

Rules of this file: pure; at most `entries` prefixes are kept, the least recently remembered one goes first; what is
older than `expiry_s` counts no more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

ENTRIES = 4096
EXPIRY_S = 1800.0
HOSTS_A_PREFIX = 4
"""A common system prompt is soon held everywhere; the most recent holders are enough."""
REMEMBERED_AT_EACH_END = 4
"""Of a long conversation only the first and the last prefixes are kept: the first are what it shares with others
(tools, system prompt), the last are where it goes on, also after its final messages were edited."""


class Affinity:
    """The table of prefixes, and for each the hosts that hold it with the time and the tokens seen."""

    def __init__(self, *, entries: int = ENTRIES, expiry_s: float = EXPIRY_S) -> None:
        self._entries = entries
        self._expiry_s = expiry_s
        self._table: OrderedDict[tuple[str, int], dict[str, tuple[float, int]]] = OrderedDict()

    def __len__(self) -> int:
        """How many prefixes are known."""
        return len(self._table)

    def remember(self, model: str, prefix: Sequence[int], node: str, now: float, *, prompt_tokens: int = 0) -> None:
        """`node` has just read a prompt with these prefixes. `prompt_tokens` is its whole length, 0 where unknown."""
        last = len(prefix) - 1
        for number, value in enumerate(prefix):
            if number < REMEMBERED_AT_EACH_END or number > last - REMEMBERED_AT_EACH_END:
                self._note((model, value), node, (now, prompt_tokens if number == last else 0))

    def _note(self, key: tuple[str, int], node: str, seen: tuple[float, int]) -> None:
        hosts = self._table.get(key)
        if hosts is None:
            hosts = self._table[key] = {}
            if len(self._table) > self._entries:
                self._table.popitem(last=False)
        else:
            self._table.move_to_end(key)
        hosts.pop(node, None)  # a dict keeps its order of insertion: the oldest holder stands first
        hosts[node] = seen
        if len(hosts) > HOSTS_A_PREFIX:
            del hosts[next(iter(hosts))]

    def held(self, model: str, prefix: Sequence[int], prompt_tokens: int, now: float) -> dict[str, int]:
        """About how many of the `prompt_tokens` each host holds; hosts that hold none are not named.

        Where the length of a prefix was not noted, each message is taken to be as long as any other.
        """
        found: dict[str, int] = {}
        if not self._table:
            return found
        for count in range(len(prefix), 0, -1):
            hosts = self._table.get((model, prefix[count - 1]))
            for node, (seen_at, tokens) in hosts.items() if hosts else ():
                if node not in found and now - seen_at <= self._expiry_s:
                    found[node] = min(prompt_tokens, tokens or prompt_tokens * count // len(prefix))
        return found
