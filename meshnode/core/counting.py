"""The payer's own count of tokens, against what a provider says it has delivered.

Theory of operation. A provider's count is a claim. Without the model's vocabulary, which a payer need not have, there
is a bound: every token of a byte-level vocabulary is at least one byte of text, but for a few that show no text (the
marks around a thought or a tool call). So what is claimed above the bytes received, or above what was asked for, was
not delivered; up to the bound it is believed, and the price ceiling is for what the provider calls a token.

Rules of this file: pure; counts are tokens, unless they are called bytes.
"""

from __future__ import annotations

SLACK_TOKENS = 8
"""So many may show no text."""
SLACK_PER_CENT = 2
TEMPLATE_TOKENS = 64
TEMPLATE_TOKENS_A_MESSAGE = 16
"""What a chat template adds to the words of a request: its frame, and marks around each message."""


class TokenCount:
    """What came of one answer. `most_out` is what was asked for: no answer is longer."""

    __slots__ = ("most_out", "received_bytes")

    def __init__(self, most_out: int) -> None:
        self.most_out = most_out
        self.received_bytes = 0

    def feed(self, text: str | bytes) -> None:
        """Some more of the answer: its text, thoughts and the arguments of its tool calls; not their JSON frame."""
        # Text out of JSON may have half a surrogate pair, which is no reason to fail here.
        self.received_bytes += len(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))

    @property
    def bound(self) -> int:
        """The most tokens that this can have been."""
        return min(self.received_bytes + SLACK_TOKENS, self.most_out)

    def accept(self, claimed: int) -> int:
        """What is believed, and paid, of a claim."""
        return min(max(0, claimed), self.bound)

    def diverges(self, claimed: int) -> bool:
        """Whether a claim is beyond what can be an honest difference: nothing more is signed for this provider."""
        return claimed > self.most_out or diverges(claimed, self.received_bytes)


def diverges(claimed: int, own: int) -> bool:
    """Whether more is claimed than an own count allows: by over 8 tokens and over 2 %."""
    return (claimed - own) * 100 > max(SLACK_TOKENS * 100, SLACK_PER_CENT * own)


def most_tokens_in(body_bytes: int, messages: int) -> int:
    """The most tokens that a prompt can have whose request has so many bytes and so many messages."""
    return body_bytes + TEMPLATE_TOKENS + TEMPLATE_TOKENS_A_MESSAGE * messages
