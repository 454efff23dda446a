import pytest

from meshnode.api.sent import CALL, CONTENT, REASONING, read_sent
from tests.api.streams import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    SAMPLES,
    events,
    message_with_tool,
    recorded,
    response_with_call,
    thinking_and_tools,
)


def test_a_chat_is_read_by_channel_in_the_pieces_in_which_it_came() -> None:
    sent = read_sent(CHAT, b": ping\n\n" + thinking_and_tools())
    assert sent.head == {"id": "chatcmpl-1", "created": 7, "model": "demo"}
    assert sent.texts[0, CONTENT] == ["Let me ", "see 🦙"]
    assert sent.text((0, REASONING)) == "hm, é"
    assert sent.calls == {(0, "call-0"): {"id": "call1", "name": "add"}, (0, "call-1"): {"id": "call1b", "name": "sub"}}
    assert sent.text((0, "call-0")) == '{"a":1}'
    assert (sent.finish, sent.usages, ("role", 0) in sent.form) == ({0: "tool_calls"}, 1, True)


def test_messages_and_responses() -> None:
    sent = read_sent(MESSAGES, message_with_tool())
    assert (sent.head["id"], sent.text((0, REASONING)), sent.text((1, CONTENT))) == ("msg1", "hm", "yes é")
    assert (sent.calls[2, CALL]["name"], sent.text((2, CALL))) == ("add", '{"a":1}')
    assert {("signature_delta", 0), ("content_block_stop", 2), ("message_stop", 0)} <= sent.form
    sent = read_sent(RESPONSES, response_with_call())
    assert [item["id"] for item in sent.items] == ["rs_1", "msg_1", "fc_1"]
    assert (sent.text((0, REASONING)), sent.text((1, CONTENT)), sent.text((2, CALL))) == ("hm", "yes é", '{"a":1}')
    assert sent.head["id"] == "resp_1" and sent.calls[2, CALL]["call_id"] == "call_1"


def test_tokens_that_were_held_back_are_counted() -> None:
    def piece(text: str) -> bytes:
        return b'data: {"choices":[{"index":0,"text":"%s","finish_reason":null}]}\n\n' % text.encode()

    sent = read_sent(COMPLETIONS, b"".join(map(piece, ("", "a", "b", "", "", "c", ""))))
    assert sent.texts[0, CONTENT] == ["a", "b", "c"]
    assert sent.held_back == [1, 0, 2, 1]


@pytest.mark.parametrize("name", SAMPLES)
def test_when_something_is_visible_and_when_the_end_has_begun(name: str) -> None:
    path, stream, _ = SAMPLES[name]
    pieces = events(stream)
    seen = [read_sent(path, b"".join(pieces[:count])) for count in range(len(pieces) + 1)]
    visible, closing = [sent.visible for sent in seen], [sent.closing for sent in seen]
    assert visible == sorted(visible) and closing == sorted(closing)  # neither is ever taken back
    assert visible[0] is False and visible[-1] is True and closing[-1] is True
    assert closing.index(True) > visible.index(True)


def test_what_is_not_of_this_world_is_a_value_error() -> None:
    for path, stream in (
        (CHAT, b"data: {\n\n"),
        (CHAT, b"data: " + b"[" * 100_000 + b"\n\n"),
        (CHAT, b'data: {"choices":[{"no":"index"}]}\n\n'),
        (CHAT, b'data: {"choices":7}\n\n'),
        (MESSAGES, b'data: {"type":"content_block_delta"}\n\n'),
        (RESPONSES, b'data: {"type":"response.output_text.delta","item_id":"x","delta":"a"}\n\n'),
        (RESPONSES, b'data: {"nothing":1}\n\n'),
    ):
        with pytest.raises(ValueError, match="event"):
            read_sent(path, stream)
    assert not read_sent(CHAT, b"data: null\n\n: x\n\ndata: [DONE]\n\n" + recorded("chat")[:0]).visible
