"""What a header answers by name, for odd and empty metadata."""

from collections.abc import Mapping

from meshnode.models.header import Header, Tensor, Value


def header(metadata: Mapping[str, Value], tensors: tuple[Tensor, ...] = (), **lengths: int) -> Header:
    return Header(3, {"general.architecture": "llama", **metadata}, lengths, tensors, 0, 0)


def test_nothing_known_is_empty_or_zero() -> None:
    bare = Header(3, {}, {}, (), 0, 0)
    assert (bare.architecture, bare.name, bare.quantisation, bare.pooling, bare.chat_template) == ("",) * 5
    assert (bare.context_length, bare.layer_count, bare.vocabulary_size, bare.split_number) == (0,) * 4
    assert bare.split_count == 1 and not bare.is_projector


def test_values_of_the_wrong_type_count_as_absent() -> None:
    odd = header({"general.name": 5, "llama.context_length": "many", "llama.block_count": 1.5})
    assert (odd.name, odd.context_length, odd.layer_count) == ("", 0, 0)


def test_quantisation_is_named_or_guessed_from_the_bytes() -> None:
    assert header({"general.file_type": 15}).quantisation == "Q4_K_M"
    tensors = (Tensor("a", (1,), "F32", 0, 10), Tensor("b", (1,), "Q6_K", 0, 30), Tensor("c", (1,), "F32", 0, 15))
    assert header({"general.file_type": 999}, tensors).quantisation == "Q6_K"


def test_a_value_for_each_layer() -> None:
    three = {"llama.block_count": 3}
    assert header({**three, "llama.x": 4}).per_layer("x") == (4, 4, 4)
    assert header({**three, "llama.x": (1, 0, 2)}).per_layer("x") == (1, 0, 2)
    assert header({**three, "llama.x": (1,)}).per_layer("x", 9) == (1, 9, 9)
    assert header({**three, "llama.x": (True, False, True, True)}).per_layer("x") == (1, 0, 1)
    assert header(three).per_layer("x", 7) == (7, 7, 7)


def test_kinds_of_models() -> None:
    assert header({"llama.pooling_type": 1}).pooling == "mean"
    assert header({"llama.pooling_type": 4}).pooling == "rank"
    assert header({"llama.pooling_type": 0}).pooling == ""
    assert header({"general.type": "mmproj"}).is_projector
    assert header({"general.architecture": "clip"}).is_projector
    assert header({"llama.vocab_size": 7}).vocabulary_size == 7
    assert header({}, **{"tokenizer.ggml.tokens": 9}).vocabulary_size == 9
