"""The sizes of random checkpoints against the published ones: weights are counted without being made."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from make_random_checkpoint import make_config, parameter_shapes, write_checkpoint
from random_families import families

pytest.importorskip("transformers")

BF16, F32 = 2, 4
# Gigabytes of the weight files on the hub, and the bytes of a weight in them.
PUBLISHED = [
    ("smolvlm", "2b", 4.49, BF16),
    ("idefics3", "8b", 16.93, BF16),
    ("idefics2", "8b", 33.61, F32),
    ("idefics", "9b", 17.86, BF16),
    ("llava_next", "7b", 14.13, BF16),
    ("instructblip", "7b", 31.66, F32),
    ("qwen2_vl", "2b", 4.42, BF16),
    ("qwen2_5_vl", "3b", 7.51, BF16),
    ("qwen3_vl", "4b", 8.88, BF16),
    ("internvl", "1b", 1.88, BF16),
    ("internvl", "2b", 4.18, BF16),
    ("internvl", "8b", 15.89, BF16),
]


def parameters(family: str, size: str) -> int:
    return sum(math.prod(shape) for _, shape in parameter_shapes(make_config(family, size)))


@pytest.mark.parametrize(("family", "size", "gigabytes", "width"), PUBLISHED)
def test_as_many_weights_as_the_published_files(family: str, size: str, gigabytes: float, width: int) -> None:
    assert parameters(family, size) * width / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_the_small_ones_to_the_last_weight() -> None:
    assert parameters("smolvlm", "256m") == 256_484_928
    assert parameters("smolvlm", "500m") == 507_482_304


@pytest.mark.parametrize("name", families())
def test_settings_name_the_familys_own_processor(name: str, tmp_path: Path) -> None:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    write_checkpoint(tmp_path, name)
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (tmp_path / file).is_file():
            settings = json.loads((tmp_path / file).read_text())
            assert settings.get("processor_class") in (None, PROCESSOR_MAPPING_NAMES[name])
            sampled = settings.get("video_sampling", {}).get("video_size")
            assert sampled in (None, settings.get("max_image_size")), "a frame of a video is one tile"
