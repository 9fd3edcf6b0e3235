"""The memory table of docs/jetson.md: fresh, and as large as bundles really are."""

from __future__ import annotations

import pytest

import memory_table
from memory_table import Footprint, footprint
from safecode_trt.manifest import DECODER, EMBEDDINGS
from tests.families import qwen2_vl
from tests.family_checkpoints import FamilyCheckpoints


def test_the_document_has_the_table_of_today() -> None:
    document = memory_table.DOCUMENT.read_text(encoding="utf-8")
    assert memory_table.written(document) == document, "run: python tools/memory_table.py --write"
    assert document.count("| qwen2_vl 2b |") == 3


def test_it_counts_what_a_bundle_holds(made: FamilyCheckpoints) -> None:
    """In so tiny a model every weight is padded to whole pages, which is most of what is more."""
    bundle = made.bundle(qwen2_vl.CASE, "int4", activations="fp16")
    found, files, g = footprint("qwen2_vl", "tiny", "int4"), bundle.manifest.files, bundle.manifest.geometry
    assert found.decoder <= files[f"{DECODER}.data"].bytes < 1.25 * found.decoder
    assert found.embeddings * 2 == pytest.approx(
        files[EMBEDDINGS].bytes, rel=0.02
    )  # in the checkpoint's float32
    assert found.cache == 2 * g.num_hidden_layers * g.num_key_value_heads * g.head_dim * 2


def test_scores_grow_with_the_square_of_a_picture_that_keeps_its_size() -> None:
    """Qwen2-VL: 39 x 69 tokens of 4 patches and 16 heads, as its graph has them; LLaVA: 24 x 24 of a fixed view."""
    assert footprint("qwen2_vl", "2b", "int4").scores == 2 * 2 * 16 * (39 * 69 * 4) ** 2
    assert footprint("llava", "7b", "int4").scores == 2 * 2 * 16 * 24**4


def test_the_smallest_board_that_has_room_for_the_system_too() -> None:
    made = Footprint(
        decoder=4_000_000_000, vision=500_000_000, embeddings=0, cache=120_000, scores=20_000_000
    )
    assert made.total(2000, 2) == 5_000_000_000
    assert memory_table._board(5_000_000_000) == "Orin Nano 8"
    assert memory_table._board(5_000_000_001) == "Orin NX 16"
    assert memory_table._board(200_000_000_000) == "none of these"
