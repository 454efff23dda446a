"""What is to be fetched of a model: the whole of it, or the tensors that a device with some of its layers reads."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.models.hub_ranges import HubFiles
from meshnode.models.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to fetch: a model by the hash of its first file and the digest of its manifest (b"": any that is right).

    `layers` are those whose tensors are wanted, with `ends` embedding and output head as well; None: the whole model.
    `hub` says where the hub has it, if that is known. `name` is what files and status call it.
    """

    sha256: bytes
    manifest: bytes = b""
    name: str
    layers: range | None = None
    ends: bool = False
    hub: HubFiles | None = None

    def chunks(self, manifest: Manifest) -> list[int]:
        """The chunks that are wanted, in the order of the files: all, or headers and the tensors of the layers."""
        if self.layers is None:
            return list(range(manifest.chunk_count))
        tensors = manifest.tensors_of_layers(self.layers, ends=self.ends)
        return sorted([*manifest.header_chunks(), *manifest.chunks_of(tensors)])
