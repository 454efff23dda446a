"""What is wanted, as chunks."""

from __future__ import annotations

from pathlib import Path

from gguf_samples import llama

from meshnode.models.survey import ManifestShelf
from meshnode.models.wanted import Wanted


def test_all_or_some_layers(tmp_path: Path) -> None:
    manifest = ManifestShelf(tmp_path / "hashes.json").survey(llama(tmp_path / "m.gguf", layers=3, kind="Q4_0"))
    everything = list(range(manifest.chunk_count))

    def tensors(wanted: Wanted) -> set[str]:
        chunks = wanted.chunks(manifest)
        assert chunks == sorted(set(chunks))
        spans = {span.tensor for span in manifest.spans if set(span.chunks) & set(chunks)}
        assert "" in spans, "a file that is not whole has a header all the same"
        return spans

    def asked(layers: range, *, ends: bool = False) -> Wanted:
        return Wanted(sha256=manifest.sha256, manifest=manifest.digest, name="m", layers=layers, ends=ends)

    assert Wanted(sha256=manifest.sha256, name="m").chunks(manifest) == everything
    middle = tensors(asked(range(1, 2)))
    assert {name for name in middle if "blk." in name} == {
        tensor.name for tensor in manifest.files[0].tensors if tensor.name.startswith("blk.1.")
    }
    assert not {"token_embd.weight", "output.weight"} & middle
    assert {"token_embd.weight", "output.weight"} <= tensors(asked(range(1, 2), ends=True))
    assert asked(range(3), ends=True).chunks(manifest) == everything
