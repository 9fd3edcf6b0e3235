"""The TensorRT backend on a fake GPU: the tokens of ONNX Runtime, and what happens on the way to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx_ir")

from safecode_trt.bundle import Bundle
from safecode_trt.config import PAPER, RuntimeConfig, SamplingParams
from safecode_trt.manifest import Flavour
from safecode_trt.policy import make_policy
from safecode_trt.policy.base import Policy
from safecode_trt.policy.plain import PLAIN
from safecode_trt.runtime import Engine
from safecode_trt.runtime.backends import cuda_stream
from tests.engine_bundle import VERSIONS, add_engines
from tests.fake_cudart import FakeCuda
from tests.fake_tensorrt import FakeTensorRT

PICTURE = Image.fromarray((np.indices((40, 60)).sum(0)[..., None] * [2, 3, 1] % 256).astype(np.uint8))
REQUEST = "can i touch it?"
SHORT = SamplingParams(max_new_tokens=16, ignore_eos=True)
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    cuda = FakeCuda()
    monkeypatch.setattr(cuda_stream, "load_cuda", lambda: cuda)
    yield cuda
    assert cuda.held() == []


@pytest.fixture
def packages(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> dict[Flavour, FakeTensorRT]:
    found: dict[Flavour, FakeTensorRT] = {}
    for flavour in FLAVOURS:
        rtx = flavour == "tensorrt-rtx"
        found[flavour] = FakeTensorRT(gpu, VERSIONS[flavour], rtx=rtx)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx" if rtx else "tensorrt", found[flavour])
    return found


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[Flavour, Bundle]:
    return {
        flavour: add_engines(tiny_bundle, tmp_path_factory.mktemp(flavour), flavour) for flavour in FLAVOURS
    }


@contextmanager
def opened(bundle: Bundle) -> Iterator[Engine]:
    with Engine.open(bundle.path, config=RuntimeConfig(backend="trt", check_hashes=False)) as engine:
        yield engine


def policies(bundle: Bundle) -> dict[str, Policy]:
    defaults = bundle.manifest.safecode
    cached = replace(PAPER, sigma=1.0, reference="cached")
    return {
        "plain": PLAIN,
        "safecode-paper": make_policy("safecode-paper", defaults),
        "cached": make_policy("safecode", defaults, settings=cached),
    }


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """The replies of ONNX Runtime."""
    with Engine.open(tiny_bundle.path, config=RuntimeConfig(threads=1)) as engine:
        return {
            name: engine.generate(REQUEST, image=PICTURE, policy=policy, sampling=SHORT).token_ids
            for name, policy in policies(tiny_bundle).items()
        }


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_tokens_are_those_of_onnx_runtime(
    flavour: Flavour,
    bundles: dict[Flavour, Bundle],
    packages: dict[Flavour, FakeTensorRT],
    expected: dict[str, tuple[int, ...]],
) -> None:
    bundle = bundles[flavour]
    with opened(bundle) as engine:
        for name, policy in [*policies(bundle).items()] * 2:  # again with the prefix that was kept
            reply = engine.generate(REQUEST, image=PICTURE, policy=policy, sampling=SHORT)
            assert reply.fallback_reason is None
            assert reply.token_ids == expected[name], name
