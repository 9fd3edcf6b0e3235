"""Tokens chosen on the fake GPU are those that the host would choose, and no logits leave it for them."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

from safecode_trt.bench.meter import MeteredSession
from safecode_trt.config import SamplingParams
from safecode_trt.errors import BackendError
from safecode_trt.ops import cuda as device_step
from safecode_trt.ops.fused import FusedChoice, FusedStep
from safecode_trt.runtime.backends.trt_logits import DeviceLogits, Kernels
from safecode_trt.runtime.reply import Reply
from tests.engine_bundle import PICTURE, REQUEST, SHORT, TENSORRT, EngineBundles, ask, opened, policies
from tests.fake_cuda import FakeDriver
from tests.fake_cudart import FakeCuda

pytestmark = pytest.mark.usefixtures("packages")

SAMPLINGS = {
    "greedy": SHORT,
    "drawn": replace(SHORT, temperature=0.8, seed=3),
    "filtered": replace(SHORT, temperature=1.3, top_k=12, top_p=0.9, min_p=0.02, seed=5),
    "wide": replace(SHORT, temperature=1.0, top_p=0.999, seed=7),  # more tokens than the device looks at
    "penalised": replace(SHORT, repetition_penalty=1.3),
}


@pytest.fixture
def driver(cuda: FakeCuda, kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    fake = FakeDriver(kernels, cuda)
    monkeypatch.setattr(device_step, "load_driver", lambda: fake)
    monkeypatch.setattr(device_step, "load_cubin", lambda name, cache: f"machine code of {name}".encode())
    yield fake
    assert not fake.held


def replies(engine_bundles: EngineBundles, sampling: SamplingParams) -> dict[str, Reply]:
    bundle = engine_bundles[TENSORRT]
    with opened(bundle) as engine:
        return {
            mode: engine.generate(REQUEST, image=PICTURE, policy=policy, sampling=sampling)
            for mode, policy in policies(bundle).items()
        }


@pytest.mark.parametrize("how", SAMPLINGS)
def test_the_device_chooses_as_the_host(
    how: str,
    engine_bundles: EngineBundles,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def without() -> None:
        raise BackendError("the kernels are not there")

    fetched, fetch = [], DeviceLogits.fetch

    def counted(self: DeviceLogits) -> NDArray[np.float32]:
        fetched.append(self)
        return fetch(self)

    monkeypatch.setattr(DeviceLogits, "fetch", counted)
    found = replies(engine_bundles, SAMPLINGS[how])
    assert bool(driver.launches) == (how != "penalised")
    assert (len(fetched) > 40) == (how in ("penalised", "wide"))  # else, those of the prefills
    monkeypatch.setattr(device_step, "load_driver", without)
    with caplog.at_level(logging.WARNING):
        wanted = replies(engine_bundles, SAMPLINGS[how])
    for mode, reply in found.items():
        assert reply.fallback_reason is None
        assert (reply.token_ids, reply.verdict) == (wanted[mode].token_ids, wanted[mode].verdict)
        assert reply.trace == wanted[mode].trace and bool(reply.trace) == (mode != "plain")
    told = ["tokens are chosen on the host: the kernels are not there"] if how != "penalised" else []
    assert [record.message for record in caplog.records] == told


def test_no_logits_leave_the_device(
    engine_bundles: EngineBundles, cuda: FakeCuda, driver: FakeDriver
) -> None:
    policy = policies(engine_bundles[TENSORRT])["safecode-paper"]
    with opened(engine_bundles[TENSORRT]) as engine:
        stream = engine.stream(REQUEST, image=PICTURE, policy=policy, sampling=SHORT)
        next(stream)
        before = cuda.calls["cudaMemcpyAsync"]
        list(stream)
        # Of each of the fifteen steps, the inputs to the device, and 256 bytes back through the driver.
        assert cuda.calls["cudaMemcpyAsync"] - before == 15
    assert len(driver.launches) == 2 * 15


def test_a_launch_that_fails_falls_back(engine_bundles: EngineBundles, driver: FakeDriver) -> None:
    driver.fails = "cuLaunchKernel"
    with opened(engine_bundles[TENSORRT]) as engine:
        policy = policies(engine.bundle)["safecode-paper"]
        found = engine.generate(REQUEST, image=PICTURE, policy=policy, sampling=SHORT)
    assert found.finish_reason == "fallback" and "cuLaunchKernel failed" in (found.fallback_reason or "")


def test_a_meter_counts_what_the_choice_waits_for(
    engine_bundles: EngineBundles, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Kernels.choose

    def slowly(self: Kernels, logits: int, rows: int, step: FusedStep, uniform: float) -> FusedChoice | None:
        time.sleep(0.004)
        return choose(self, logits, rows, step, uniform)

    monkeypatch.setattr(Kernels, "choose", slowly)
    with opened(engine_bundles[TENSORRT]) as engine:
        engine.model.session = meter = MeteredSession(engine.model.session)
        ask(engine)
    assert len(driver.launches) == 2 * 15
    for call in meter.calls[-15:]:
        assert 0.004 <= call.inside <= call.end - call.start
