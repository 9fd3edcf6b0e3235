"""What is refused before a build begins, and what to do instead."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.contract import Activations, Precision
from safecode_trt.engine_entry import Flavour
from safecode_trt.errors import BackendError, ConfigError
from safecode_trt.export import engine_builder, engine_checks
from safecode_trt.export.engine_checks import (
    require_buildable,
    require_memory,
    require_timing_cache,
    targets,
    why_not_portable,
)
from safecode_trt.export.engine_config import EngineConfig, parse_picture, parse_sm
from safecode_trt.manifest import DECODER, FileEntry, Manifest, Method, Quantization
from safecode_trt.runtime.device import CudaDevice
from tests.null_bundle import write_null_bundle

GPU = CudaDevice(name="Orin", compute_capability="87", free_memory=3 << 30, total_memory=8 << 30)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_null_bundle(tmp_path / "bundle"))


def manifest(bundle: Bundle, precision: Precision, activations: Activations) -> Manifest:
    return replace(bundle.manifest, precision=precision, activations=activations)


@pytest.mark.parametrize(
    ("precision", "activations", "flavour", "version", "reason"),
    [
        ("fp16", "fp16", "tensorrt", "10.15.1.29", None),
        ("bf16", "bf16", "tensorrt", "11.4.0.106", None),
        ("int4", "fp16", "tensorrt-rtx", "1.7.1.116", None),
        (
            "int4",
            "fp16",
            "tensorrt",
            "10.3.0",
            r"tensorrt 10\.3\.0 lacks operators .* which 10\.15 is the first",
        ),
        ("int4", "fp32", "tensorrt", "10.7.0.23", r"10\.7\.0\.23 lacks operators of the portable form"),
        (
            "int4",
            "fp32",
            "tensorrt-rtx",
            "1.7.1.116",
            "no fused attention for float32 activations; to have it",
        ),
        ("fp32", "fp32", "tensorrt", "11.4.0.106", "tensorrt has no fused attention .* --precision fp16"),
    ],
)
def test_the_form_follows_from_the_version_and_the_activations(
    bundle: Bundle,
    precision: Precision,
    activations: Activations,
    flavour: Flavour,
    version: str,
    reason: str | None,
) -> None:
    exported = manifest(bundle, precision, activations)
    require_buildable(exported, flavour, version)
    found = why_not_portable(exported, flavour, version)
    assert found is None if reason is None else re.search(reason, found or "")
    assert "\n" not in (found or "")


@pytest.mark.parametrize(
    ("flavour", "version", "message"),
    [
        ("tensorrt", "10.2.0", "too old; expected 10.3 or later"),
        ("tensorrt-rtx", "1.3.0.35", "too old; expected 1.4 or later"),
    ],
)
def test_what_is_too_old_is_one_line(bundle: Bundle, flavour: Flavour, version: str, message: str) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        require_buildable(bundle.manifest, flavour, version)
    assert "\n" not in str(caught.value)


def test_zero_points_are_refused(bundle: Bundle) -> None:
    how = Quantization(bits=4, block_size=32, symmetric=False)
    asymmetric = replace(manifest(bundle, "int4", "fp16"), quantization={"a": how})
    with pytest.raises(BackendError, match="zero points, and tensorrt takes symmetric ones only"):
        require_buildable(asymmetric, "tensorrt", "11.4")


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_zero_points_of_a_checkpoint_need_another_checkpoint(bundle: Bundle, method: Method) -> None:
    how = Quantization(bits=4, block_size=32, symmetric=False, method=method)
    given = replace(manifest(bundle, "int4", "fp16"), quantization={"a": how})
    with pytest.raises(BackendError, match="that it was quantised from, or one that GPTQ has") as caught:
        require_buildable(given, "tensorrt", "11.4")
    assert "--asymmetric" not in str(caught.value)


def on(monkeypatch: pytest.MonkeyPatch, *, device: CudaDevice | None = None, free: int | None = None) -> None:
    monkeypatch.setattr(engine_checks, "cuda_device", lambda: device)
    monkeypatch.setattr(engine_checks, "free_memory", lambda: free)


def test_tensorrt_builds_for_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    native = EngineConfig(flavour="tensorrt")
    on(monkeypatch, device=GPU)
    assert targets(native) == ("87",)
    assert targets(replace(native, compute_capabilities=("87",))) == ("87",)
    with pytest.raises(ConfigError, match=r"must be 87, the GPU of this machine, .* got 86"):
        targets(replace(native, compute_capabilities=("86",)))
    on(monkeypatch)
    with pytest.raises(BackendError, match="there is none here; fix: build on the device"):
        targets(native)


def test_tensorrt_rtx_builds_for_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch)
    rtx = EngineConfig(flavour="tensorrt-rtx")
    assert targets(rtx) == ("86", "89", "120")
    assert targets(replace(rtx, compute_capabilities=("75",))) == ("75",)


@pytest.mark.parametrize(
    ("flavour", "settings", "free", "message"),
    [
        ("tensorrt-rtx", {}, 4 << 30, None),
        ("tensorrt-rtx", {}, None, None),
        (
            "tensorrt-rtx",
            {},
            2 << 30,
            r"about 4025 MiB of main memory \(1024 MiB of weights\), 2048 MiB are free",
        ),
        ("tensorrt-rtx", {"workspace_mib": 9000}, 4 << 30, None),
        ("tensorrt", {"workspace_mib": 2000}, 4 << 30, None),
        ("tensorrt", {"workspace_mib": 2100}, 4 << 30, "about 3124 MiB of GPU memory .* 3072 MiB are free"),
    ],
)
def test_too_little_memory_is_refused(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    flavour: Flavour,
    settings: dict[str, Any],
    free: int | None,
    message: str | None,
) -> None:
    on(monkeypatch, device=GPU, free=free)
    files = {**bundle.manifest.files, f"{DECODER}.data": FileEntry(bytes=1 << 30, sha256="0" * 64)}
    large = replace(bundle, manifest=replace(bundle.manifest, files=files))
    config = EngineConfig(flavour=flavour, **settings)
    if message is None:
        require_memory(large, config)
    else:
        with pytest.raises(BackendError, match=message):
            require_memory(large, config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_rows": 0}, "max_rows must be at least 1, got 0"),
        ({"max_prefill": -1}, "max_prefill must be at least 1"),
        ({"workspace_mib": 0}, "workspace_mib must be at least 1"),
        ({"opt_level": 6}, "opt_level must be between 0 and 5, got 6"),
        ({"compute_capabilities": ("86", "86")}, "compute_capabilities names a GPU twice"),
        ({"max_picture": (0, 4)}, "max_picture must have sides of at least 1"),
        ({"timing_cache": Path("x")}, "tensorrt-rtx measures nothing while it builds"),
        ({"flavour": "tensorrt-lite"}, "flavour must be one of tensorrt, tensorrt-rtx"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**{"flavour": "tensorrt-rtx", **settings})


def test_a_timing_cache_needs_a_place(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none" / "x", "no folder .*none; name another"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            require_timing_cache(EngineConfig(flavour="tensorrt", timing_cache=path))
    require_timing_cache(EngineConfig(flavour="tensorrt", timing_cache=tmp_path / "x"))
    require_timing_cache(EngineConfig(flavour="tensorrt"))


def test_a_timing_cache_that_cannot_be_saved_is_a_note(tmp_path: Path) -> None:
    config = SimpleNamespace(get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"measured"))
    notes: list[str] = []
    engine_builder._save_timing_cache(config, tmp_path / "cache", notes.append)
    assert notes == [] and (tmp_path / "cache").read_bytes() == b"measured"
    engine_builder._save_timing_cache(config, tmp_path / "none" / "cache", notes.append)
    assert len(notes) == 1 and notes[0].endswith("could not be saved: No such file or directory")


def test_the_command_lines_words() -> None:
    assert parse_sm(None) == () and parse_sm("86,89,120") == ("86", "89", "120")
    assert parse_picture("1920x1080") == (1920, 1080)
    for text in ("", "8", "8.6", "86,", "86 89", "sm86"):
        with pytest.raises(ConfigError, match="compute capabilities like 86,89,120"):
            parse_sm(text)
    for text in ("", "1280", "1280*960", "axb", "1x2x3"):
        with pytest.raises(ConfigError, match="WIDTHxHEIGHT like 1280x960"):
            parse_picture(text)
