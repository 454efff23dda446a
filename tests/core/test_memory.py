"""The bound of scratch memory by hand; tests/models/test_scratch.py compares it with the engine."""

from meshnode.core.memory import (
    MIB,
    OUTPUTS_PER_REQUEST,
    SMALL_INPUTS_BYTES,
    UBATCH,
    compute_bytes,
    pad,
)
from meshnode.models.shapes import LayerShape
from tests.core.split_samples import Model

TOKEN = UBATCH * 4
WIDE = LayerShape(MIB, 128, 128, scratch_elements=3000, spare_elements=500)
NARROW = LayerShape(MIB, 128, 128, window=1024, scratch_elements=1000, spare_elements=100)
STATE = LayerShape(MIB, state_bytes=10_000, scratch_elements=2000, spare_elements=200)
MIXED = Model("mixed", (WIDE, NARROW, NARROW, STATE), MIB, MIB, n_embd=256, n_vocab=50_000)


def scratch(first: int, end: int, *, context: int = 8192, parallel: int = 1, copies: int = 1) -> int:
    return compute_bytes(
        MIXED, context=context, parallel=parallel, with_output=False, first=first, end=end, copies=copies
    )


def test_sizes_are_padded_up() -> None:
    assert (pad(0, 256), pad(1, 256), pad(256, 256), pad(257, 256)) == (0, 256, 256, 512)


def test_a_device_holds_the_masks_of_its_kinds_of_layers_and_the_largest_layer() -> None:
    full, window = 2 * 8192 * UBATCH, 2 * 1536 * UBATCH
    assert scratch(0, 1) == full + SMALL_INPUTS_BYTES + TOKEN * 3500
    assert scratch(1, 3) == window + SMALL_INPUTS_BYTES + TOKEN * 1100
    assert scratch(0, 3) == full + window + SMALL_INPUTS_BYTES + TOKEN * 3500
    assert scratch(1, 3, context=500) == 2 * 512 * UBATCH + SMALL_INPUTS_BYTES + TOKEN * 1100
    assert scratch(3, 4, parallel=3) == SMALL_INPUTS_BYTES + TOKEN * 2200 + 60_000
    assert scratch(2, 2) == 0


def test_conversations_of_their_own_share_the_rows_of_a_mask() -> None:
    assert scratch(0, 3, parallel=4) == scratch(0, 3, parallel=1)


def test_batches_under_way_at_once_have_inputs_of_their_own() -> None:
    inputs = 2 * 8192 * UBATCH + SMALL_INPUTS_BYTES + TOKEN * MIXED.n_embd
    assert scratch(0, 1, copies=4) == scratch(0, 1) + 3 * inputs


def test_main_memory_has_all_inputs_even_without_layers() -> None:
    masks = 2 * (8192 + 1536) * UBATCH + SMALL_INPUTS_BYTES
    bare = compute_bytes(MIXED, context=8192, parallel=1, with_output=False, first=0, end=0, main=True)
    assert bare == masks + TOKEN * (500 + MIXED.n_embd)
    one = compute_bytes(MIXED, context=8192, parallel=1, with_output=False, first=1, end=2, main=True)
    assert one == masks + TOKEN * (1100 + MIXED.n_embd)


def test_logits_are_made_when_the_layers_are_through() -> None:
    few = compute_bytes(MIXED, context=8192, parallel=2, with_output=True)
    assert few == compute_bytes(MIXED, context=8192, parallel=2, with_output=False)
    many = compute_bytes(MIXED, context=8192, parallel=2, with_output=True, outputs=UBATCH)
    assert few < many == 4 * UBATCH * 50_000 + 2 * TOKEN * 256 + SMALL_INPUTS_BYTES
    alone = compute_bytes(MIXED, context=8192, parallel=2, with_output=True, first=0, end=0)
    # Inputs smaller than an activation leave no hole for one.
    assert alone == 4 * 2 * OUTPUTS_PER_REQUEST * 50_000 + 3 * TOKEN * 256 + 2 * SMALL_INPUTS_BYTES


def test_layers_whose_scratch_is_not_known_are_bounded_by_their_widths() -> None:
    plain = Model("plain", (LayerShape(MIB, 64, 64),), MIB, MIB, n_embd=1024, n_ff=2048)
    found = compute_bytes(plain, context=256, parallel=1, with_output=False)
    assert found == 2 * 256 * UBATCH + SMALL_INPUTS_BYTES + TOKEN * (3 * 2048 + 4 * 1024)
