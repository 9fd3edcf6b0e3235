"""Which engines run where, and what is said when none does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.engine_entry import EngineEntry
from safecode_trt.errors import BackendError
from safecode_trt.runtime.engine_choice import TensorRTRuntime, choose_engine, misfit
from tests.null_bundle import write_null_bundle

RTX = EngineEntry(
    flavour="tensorrt-rtx",
    version="1.7.1.116",
    compute_capabilities=("86", "120"),
    precision="int4",
    activations="fp16",
    attention="portable",
    capacity=512,
    graphs={},
)
NATIVE = replace(RTX, flavour="tensorrt", version="10.16.1.11", compute_capabilities=("87",))
DESKTOP = TensorRTRuntime(flavour="tensorrt-rtx", version="1.7.1.116", compute_capability="120")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"compute_capability": "86"}, None),
        ({"compute_capability": "89"}, "for compute capability 86, 120"),
        ({"compute_capability": "12"}, "for compute capability 86, 120"),
        ({"version": "1.7.1.117"}, "of version 1.7.1.116"),
        ({"flavour": "tensorrt", "version": "1.7.1.116"}, "for tensorrt-rtx"),
    ],
)
def test_an_engine_is_for_its_version_and_gpus(changes: dict[str, str], reason: str | None) -> None:
    assert misfit(RTX, replace(DESKTOP, **changes)) == reason  # type: ignore[arg-type]


def test_the_folder_says_what_it_is_for() -> None:
    assert RTX.folder == "engines/tensorrt-rtx-1.7.1.116-sm86_120"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_null_bundle(tmp_path / "bundle"))


def test_the_engine_that_fits_is_chosen(bundle: Bundle) -> None:
    both = replace(bundle, manifest=replace(bundle.manifest, engines=(NATIVE, RTX)))
    assert choose_engine(both, DESKTOP) is RTX
    jetson = TensorRTRuntime(flavour="tensorrt", version="10.16.1.11", compute_capability="87")
    assert choose_engine(both, jetson) is NATIVE


def test_what_was_found_needed_and_to_be_done_is_said(bundle: Bundle) -> None:
    command = f"fix: safecode-trt build {bundle.path} --flavour tensorrt-rtx --sm 75"
    here = replace(DESKTOP, compute_capability="75")
    with pytest.raises(BackendError) as caught:
        choose_engine(bundle, here)
    assert "no engine was built" in str(caught.value) and command in str(caught.value)
    both = replace(bundle, manifest=replace(bundle.manifest, engines=(NATIVE, RTX)))
    with pytest.raises(BackendError) as caught:
        choose_engine(both, here)
    message = str(caught.value)
    assert "no engine for tensorrt-rtx 1.7.1.116 on compute capability 75" in message and command in message
    assert "tensorrt-10.16.1.11-sm87 is for tensorrt;" in message
    assert "sm86_120 is for compute capability 86, 120" in message
