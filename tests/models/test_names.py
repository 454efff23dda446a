"""Every way to name a model, every way to get it wrong, and which file of a repository is meant."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import ModelNotFound
from meshnode.models.catalog import Catalog, load_catalog
from meshnode.models.names import (
    LocalName,
    ModelRef,
    choose_files,
    did_you_mean,
    file_ref,
    quant_of,
    resolve,
    stem_of,
)

CATALOG = load_catalog()


def named(text: str, **more: object) -> ModelRef:
    return resolve(text, catalog=CATALOG, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "canonical", "alias"),
    [
        ("demo", "demo", "demo"),
        ("qwen3-8b", "Qwen/Qwen3-8B-GGUF:Q4_K_M", "qwen3-8b"),
        ("  Qwen3-8B ", "Qwen/Qwen3-8B-GGUF:Q4_K_M", "qwen3-8b"),
        ("qwen3-8b:q8_0", "Qwen/Qwen3-8B-GGUF:Q8_0", "qwen3-8b:Q8_0"),
        ("owner/repo", "owner/repo", ""),
        ("owner/repo:q5_k_m", "owner/repo:Q5_K_M", ""),
        ("owner/repo:UD-Q4_K_XL", "owner/repo:UD-Q4_K_XL", ""),
        ("owner/repo:latest", "owner/repo", ""),
        ("hf://owner/repo", "owner/repo", ""),
        ("hf://owner/repo:Q8_0", "owner/repo:Q8_0", ""),
        ("hf://models/owner/repo", "owner/repo", ""),
        ("hf.co/owner/repo:Q8_0", "owner/repo:Q8_0", ""),
        ("huggingface.co/owner/repo", "owner/repo", ""),
        ("https://huggingface.co/owner/repo", "owner/repo", ""),
        ("https://huggingface.co/owner/repo/", "owner/repo", ""),
        ("https://huggingface.co/owner/repo?show_file_info=x", "owner/repo", ""),
        ("https://huggingface.co/owner/repo/discussions", "owner/repo", ""),
        ("https://huggingface.co/owner/repo/tree/main", "owner/repo", ""),
        ("owner/repo/sub/model-Q6_K.gguf", "owner/repo:Q6_K", ""),
        ("owner/repo/model.gguf", "owner/repo/model.gguf", ""),
        ("GLM-4.7-Flash-Q4_K_M", "ggml-org/GLM-4.7-Flash-GGUF:Q4_K_M", "glm-4.7-flash"),
        ("Qwen2.5-3B-Instruct-Q4_K_M.gguf", "Qwen/Qwen2.5-3B-Instruct-GGUF:Q4_K_M", "qwen2.5-3b"),
    ],
)
def test_what_people_type(text: str, canonical: str, alias: str) -> None:
    ref = named(text)
    assert (ref.canonical, ref.alias) == (canonical, alias)
    assert ref.short_name == (alias or canonical)


@pytest.mark.parametrize("kind", ["blob", "resolve", "tree", "raw"])
def test_links_to_files_carry_the_revision(kind: str) -> None:
    ref = named(f"https://huggingface.co/owner/repo/{kind}/v1.0/Q4_K_M/m-Q4_K_M-00001-of-00002.gguf?download=true")
    assert (ref.repo, ref.revision, ref.quant) == ("owner/repo", "v1.0", "Q4_K_M")
    assert ref.filename == "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf"


def test_a_revision_after_an_at_sign() -> None:
    ref = named("owner/repo@v2:Q8_0")
    assert (ref.canonical, ref.revision) == ("owner/repo:Q8_0", "v2")


def test_stems_on_this_disk_win_over_the_catalog() -> None:
    mine = ModelRef("me/mine:Q8_0", "hub", repo="me/mine", quant="Q8_0")
    local = [LocalName("qwen2.5-3b-instruct-q4_k_m", mine)]
    assert named("Qwen2.5-3B-Instruct-Q4_K_M", local=local) == mine


def test_paths() -> None:
    there = {Path("/models/My-Q8_0.gguf"), Path("here.gguf"), Path("./sub/x.gguf")}
    for text in ("/models/My-Q8_0.gguf", "here.gguf", "./sub/x.gguf"):
        ref = named(text, is_file=there.__contains__)
        assert ref.kind == "file" and ref.path in there
    assert named("/models/My-Q8_0.gguf", is_file=there.__contains__).canonical == "file:My-Q8_0"
    home = named("~/m.gguf", is_file=lambda path: path == Path.home() / "m.gguf")
    assert home.path == Path.home() / "m.gguf"
    with pytest.raises(ModelNotFound, match="there is no file /models/absent.gguf"):
        named("/models/absent.gguf")
    assert file_ref(Path("a/b-00001-of-00003.gguf")).canonical == "file:b"


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "x" * 10_000, "a\x00b", "a\nb", "\x1b[2Jdemo", "owner/..", "../..:Q8_0x/y", "a/b/../c.gguf",
        "a//b.gguf", "http://[",
        "owner/re po", "own--er/repo", "owner/repo:" + "q" * 60, "owner/repo:a b", "owner/repo:../x", "owner/repo@../x",
        "https://example.com/model.gguf", "ftp://huggingface.co/a/b", "https://huggingface.co/", "hf://", "hf://a",
        "https://huggingface.co/a/b/blob/..%2f..%2fx/m.gguf", "https://huggingface.co/a/b/blob/main/..%2f..%2fm.gguf",
        "owner/repo/file.safetensors", "/", "~nobody-here/x.gguf", "a/b/c/d", "C:\\x\\y.gguf", "\ud800", "ünï/cödé",
    ],
)  # fmt: skip
def test_hostile_and_malformed_names_are_refused(text: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        named(text)
    assert caught.value.fix and len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=80) | st.from_regex(r"[a-z:/.@-]{1,40}"))
def test_any_text_resolves_or_is_refused(text: str) -> None:
    try:
        ref = named(text)
    except ModelNotFound:
        return
    assert ref.kind in ("hub", "demo")
    assert not {"", ".", ".."} & set(ref.repo.split("/") if ref.repo else ["demo"])
    assert not {".", ".."} & set(ref.filename.split("/")) and not ref.filename.startswith("/")


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("qwen3-8", "qwen3-8b"),
        ("qwen38b", "qwen3-8b"),
        ("lama-3.2-3b", "llama-3.2-3b"),
        ("gpt-oss", "gpt-oss-20b"),
        ("dmeo", "demo"),
        ("coder", "coder"),
    ],
)
def test_did_you_mean(text: str, suggestion: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        named(text)
    assert suggestion in caught.value.fix and caught.value.fix.startswith("did you mean")


@pytest.mark.parametrize(
    ("text", "suggestion"), [("llama3.2:3b", "llama-3.2-3b"), ("qwen3:8b", "qwen3-8b"), ("phi4:latest", "")]
)
def test_ollama_names_get_a_sentence_and_a_suggestion(text: str, suggestion: str) -> None:
    with pytest.raises(ModelNotFound, match="looks like an Ollama name") as caught:
        named(text)
    assert suggestion in caught.value.fix


def test_near_names_are_bounded_and_in_order() -> None:
    assert did_you_mean("abc", ["abd", "abx", "abcd", "zzz", "xabcx"], 2) == ["abcd", "xabcx"]
    assert did_you_mean("x" * 100_000, ["x"]) == []
    assert did_you_mean("q", []) == []


@pytest.mark.parametrize(
    ("filename", "quant", "stem"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M", "Qwen3-8B-Q4_K_M"),
        ("m.Q5_K_S.gguf", "Q5_K_S", "m.Q5_K_S"),
        ("qwen2.5-3b-instruct-q4_k_m.gguf", "Q4_K_M", "qwen2.5-3b-instruct-q4_k_m"),
        ("x-UD-Q4_K_XL.gguf", "UD-Q4_K_XL", "x-UD-Q4_K_XL"),
        ("x-IQ4_XS.gguf", "IQ4_XS", "x-IQ4_XS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4", "gpt-oss-20b-mxfp4"),
        ("m-BF16-00001-of-00002.gguf", "BF16", "m-BF16"),
        ("Q8_0/m-00001-of-00002.gguf", "Q8_0", "m"),
        ("m-f16.gguf", "F16", "m-f16"),
        ("model.gguf", "", "model"),
        ("x-TQ1_0.gguf", "TQ1_0", "x-TQ1_0"),
    ],
)
def test_what_a_file_name_states(filename: str, quant: str, stem: str) -> None:
    assert (quant_of(filename), stem_of(filename)) == (quant, stem)


def files(*names: str, quant: str = "", filename: str = "") -> tuple[str, ...]:
    return choose_files(names, quant, filename).parts


def test_the_usual_quantisation_then_the_next_then_the_first() -> None:
    assert files("a-Q8_0.gguf", "a-Q4_K_M.gguf", "a-Q2_K.gguf") == ("a-Q4_K_M.gguf",)
    assert files("a-Q8_0.gguf", "a-Q2_K.gguf") == ("a-Q8_0.gguf",)
    assert files("b-Q3_K_M.gguf", "a-Q2_K.gguf") == ("a-Q2_K.gguf",)
    assert files("README.md", "a.gguf") == ("a.gguf",)


def test_an_exact_quantisation_wins_over_one_that_contains_it() -> None:
    assert files("a-UD-Q4_K_M.gguf", "a-Q4_K_M.gguf", quant="q4_k_m") == ("a-Q4_K_M.gguf",)
    assert files("a-UD-Q4_K_M.gguf", quant="Q4_K_M") == ("a-UD-Q4_K_M.gguf",)
    assert files("a-IQ4_XS.gguf", "a-Q4_K_S.gguf", quant="Q4_K_S") == ("a-Q4_K_S.gguf",)


@pytest.mark.parametrize(
    "other", ["mmproj-F16", "imatrix", "mtp-Q4_K_M", "eagle3-Q4_K_M", "dflash-Q4_K_M", "dspark-Q4_K_M"]
)
def test_files_that_are_not_the_model_are_passed_over(other: str) -> None:
    assert files(f"{other}.gguf", "z-Q6_K.gguf") == ("z-Q6_K.gguf",)
    with pytest.raises(ModelNotFound):
        files(f"{other}.gguf")


def test_split_sets_come_whole_and_in_order() -> None:
    names = [f"Q4_K_M/m-Q4_K_M-0000{n}-of-00003.gguf" for n in (3, 1, 2)]
    assert files(*names) == tuple(sorted(names))
    assert files(*names, filename=names[0]) == tuple(sorted(names))
    with pytest.raises(ModelNotFound, match="lacks 1 of 3 parts"):
        files(*names[:2])
    with pytest.raises(ModelNotFound):
        files("m-Q4_K_M-00001-of-99999.gguf")


def test_the_projector_beside_the_model() -> None:
    names = ["m-Q4_K_M.gguf", "mmproj-m-BF16.gguf", "mmproj-m-f16.gguf", "other/mmproj-x-f16.gguf"]
    assert choose_files(names).mmproj == "mmproj-m-f16.gguf"
    assert choose_files(names[:2]).mmproj == "mmproj-m-BF16.gguf"
    assert choose_files(names[:1]).mmproj == ""
    assert choose_files(["sub/m-Q4_K_M.gguf", "sub/mmproj.gguf", "z/mmproj.gguf"]).mmproj == "sub/mmproj.gguf"


def test_what_is_not_there_is_answered_with_what_is() -> None:
    with pytest.raises(ModelNotFound, match="no Q3_K_M file") as caught:
        files("a-Q8_0.gguf", "a-Q4_K_M.gguf", quant="Q3_K_M")
    assert caught.value.fix == "it has Q4_K_M, Q8_0"
    with pytest.raises(ModelNotFound, match=r"no file x\.gguf"):
        files("a-Q8_0.gguf", filename="x.gguf")
    with pytest.raises(ModelNotFound, match="no GGUF"):
        files("config.json")


def test_an_empty_catalog_still_resolves_repositories() -> None:
    assert resolve("a/b:Q8_0", catalog=Catalog(())).repo == "a/b"
