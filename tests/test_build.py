"""Engines are built whole or not at all; most tests put a stand-in where TensorRT is."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from safecode_trt.bundle import Bundle, write_manifest
from safecode_trt.engine_entry import Flavour
from safecode_trt.errors import BackendError, BundleError, ConfigError
from safecode_trt.manifest import BUNDLE_JSON, DECODER, VISION_ENCODER
from safecode_trt.runtime.device import CudaDevice
from tests.cli_runner import call, fails, start

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

import onnx

from safecode_trt.export import ExportConfig, build, engine_checks, export_bundle
from safecode_trt.export.build import build_engines
from safecode_trt.export.engine_config import EngineConfig

FAST = EngineConfig(
    flavour="tensorrt-rtx", compute_capabilities=("86",), opt_level=0, max_prefill=64, max_picture=(96, 64)
)


@pytest.fixture(scope="module")
def original(tiny_checkpoint: Path) -> Path:
    config = ExportConfig(precision="fp16", verify=False)
    return export_bundle(tiny_checkpoint, tiny_checkpoint.with_name("fp16"), config=config).path


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "bundle")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@dataclass
class Builder:
    """Stands where TensorRT does: its engines are what `make` returns."""

    make: Callable[[str], bytes] = str.encode
    flavour: Flavour = "tensorrt-rtx"
    version: str = "1.7.1.116"
    models: dict[str, bytes] = field(default_factory=dict)

    def load(self, flavour: Flavour) -> Builder:
        return self

    def build(
        self,
        model: bytes,
        path: Path,
        profiles: Sequence[Any],
        settings: EngineConfig,
        report: Any,
        note: Any,
    ) -> bytes:
        report("working", 1, 1)
        self.models[path.name] = model
        return self.make(path.name)


def test_engines_are_listed_with_size_and_hash(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TensorRT", Builder())
    steps: list[tuple[str, int, int]] = []
    entry = build_engines(bundle, FAST, progress=lambda *step: steps.append(step))
    assert entry.folder == "engines/tensorrt-rtx-1.7.1.116-sm86"
    opened = Bundle.open(bundle, check_hashes=True)
    assert opened.manifest.engines == (entry,)
    assert {name: opened.file(graph.file).read_bytes() for name, graph in entry.graphs.items()} == {
        VISION_ENCODER: b"vision_encoder.onnx",
        DECODER: b"decoder.onnx",
    }
    assert (entry.precision, entry.activations, entry.capacity) == ("fp16", "fp16", 256)
    assert [profile.name for profile in entry.graphs[DECODER].profiles] == ["prefill", "decode"]
    assert steps == [("vision_encoder: working", 1, 1), ("decoder: working", 1, 1)]
    assert sorted(path.name for path in (bundle / "engines").iterdir()) == [Path(entry.folder).name]


def test_building_again_replaces_and_other_targets_stay(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "TensorRT", Builder())
    first = build_engines(bundle, FAST)
    other = build_engines(bundle, _for("89", "120"))
    monkeypatch.setattr(build, "TensorRT", Builder(lambda name: b"longer than before " + name.encode()))
    again = build_engines(bundle, FAST)
    manifest = Bundle.open(bundle, check_hashes=True).manifest
    assert manifest.engines == (other, again) and again.folder == first.folder
    assert (bundle / again.graphs[DECODER].file).read_bytes() == b"longer than before decoder.onnx"
    assert (bundle / other.graphs[DECODER].file).read_bytes() == b"decoder.onnx"
    names = {Path(entry.folder).name for entry in (other, again)}
    assert {path.name for path in (bundle / "engines").iterdir()} == names


@pytest.mark.parametrize("failing", ["vision_encoder.onnx", "decoder.onnx"])
@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt(), BackendError("no kernels"), OSError(28, "No space left")]
)
@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
def test_a_broken_off_build_leaves_the_bundle_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, failing: str, failure: BaseException, before: bool
) -> None:
    def make(name: str) -> bytes:
        if name == failing:
            raise failure
        return b"half"

    if before:
        monkeypatch.setattr(build, "TensorRT", Builder())
        build_engines(bundle, FAST)
    was = contents(bundle)
    monkeypatch.setattr(build, "TensorRT", Builder(make))
    with pytest.raises(BundleError if isinstance(failure, OSError) else type(failure)):
        build_engines(bundle, FAST)
    assert contents(bundle) == was


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_while_engines_are_entered(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, at: int, before: bool
) -> None:
    monkeypatch.setattr(build, "TensorRT", Builder())
    if before:
        build_engines(bundle, FAST)
    was, written = contents(bundle), []

    def write(folder: Path, manifest: Any) -> None:
        written.append(manifest)
        if len(written) == at:
            raise KeyboardInterrupt
        write_manifest(folder, manifest)
        assert Bundle.open(folder, check_hashes=True), "at every moment all that is named is there"

    monkeypatch.setattr(build, "write_manifest", write)
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, FAST)
    assert contents(bundle) == was


def test_a_changed_engine_is_found_and_built_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TensorRT", Builder())
    path = bundle / build_engines(bundle, FAST).graphs[DECODER].file
    path.write_bytes(path.read_bytes().upper())
    fails(call("verify", bundle), 1, "fix: safecode-trt build")
    path.unlink()
    fails(call("inspect", bundle), 1, "decoder.engine is missing; fix: safecode-trt build")


def test_an_engine_must_be_among_the_files(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TensorRT", Builder())
    build_engines(bundle, FAST)
    data = json.loads((bundle / BUNDLE_JSON).read_text())
    data["engines"][0]["graphs"][DECODER]["file"] = "engines/other.engine"
    (bundle / BUNDLE_JSON).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"engine 'engines/other\.engine' is not among the files"):
        Bundle.open(bundle)


def test_a_package_that_is_absent_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(
        BackendError, match=r"tensorrt cannot be imported .*pip install 'safecode-trt\[trt\]'"
    ):
        build_engines(bundle, EngineConfig(flavour="tensorrt"))


def test_the_command_line_builds_and_shows(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TensorRT", Builder())
    built = call("build", bundle, "--flavour", "tensorrt-rtx", "--sm", "86,89", "--max-rows", "2")
    assert built.exit_code == 0, built.output
    assert built.stdout.strip() == str(bundle / "engines/tensorrt-rtx-1.7.1.116-sm86_89")
    assert [line.split(":")[0] for line in built.stderr.splitlines()] == [
        "vision_encoder.engine",
        "decoder.engine",
    ]
    shown = call("inspect", bundle).stdout
    assert (
        "tensorrt-rtx 1.7.1.116, compute capability 86, 89, fp16 with fp16 activations, portable attention"
        in shown
    )
    assert "prefill: C 1-2, K 1-256, Q 1-16, T 1-256" in shown
    assert "decode: C 1-2, K 1-256, Q 1-16, T 1-8" in shown


def test_a_timing_cache_without_a_place_is_refused_before_anything_is_built(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = CudaDevice(name="Orin", compute_capability="87", free_memory=8 << 30, total_memory=8 << 30)
    monkeypatch.setattr(engine_checks, "cuda_device", lambda: gpu)
    builder = Builder(flavour="tensorrt", version="10.16.1.11")
    monkeypatch.setattr(build, "TensorRT", builder)
    cache = tmp_path / "none" / "x"
    fails(
        call("build", bundle, "--flavour", "tensorrt", "--timing-cache", cache),
        2,
        f"no folder {cache.parent}",
    )
    assert builder.models == {} and not (bundle / "engines").exists()


PORTABLE = (b"RMSNormalization", b"RotaryEmbedding", b"TensorScatter", b"Attention")


@pytest.mark.parametrize(("version", "rewritten"), [("10.3.0", True), ("10.16.1.11", False)])
def test_the_installed_version_chooses_the_form(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, version: str, rewritten: bool
) -> None:
    gpu = CudaDevice(name="Orin", compute_capability="87", free_memory=8 << 30, total_memory=8 << 30)
    monkeypatch.setattr(engine_checks, "cuda_device", lambda: gpu)
    builder = Builder(flavour="tensorrt", version=version)
    monkeypatch.setattr(build, "TensorRT", builder)
    was = contents(bundle)
    built = call("build", bundle, "--flavour", "tensorrt")
    assert built.exit_code == 0, built.output
    note = f"the decoder is built in the decomposed form: tensorrt {version} lacks operators"
    assert (note in built.stderr) == rewritten and ("form" in built.stderr) == rewritten
    names = {
        node.op_type.encode() for node in onnx.load_from_string(builder.models["decoder.onnx"]).graph.node
    }
    assert names.isdisjoint(PORTABLE) if rewritten else names.issuperset(PORTABLE)
    attention = "decomposed" if rewritten else "portable"
    manifest = Bundle.open(bundle).manifest
    assert (manifest.attention, manifest.engines[0].attention) == ("portable", attention)
    assert f"fp16 activations, {attention} attention" in " ".join(call("inspect", bundle).stdout.split())
    after = contents(bundle)
    assert all(after[name] == data for name, data in was.items() if name != BUNDLE_JSON)


def _for(*capabilities: str) -> EngineConfig:
    return EngineConfig(flavour="tensorrt-rtx", compute_capabilities=capabilities)


@pytest.mark.trt
def test_ctrl_c_ends_the_build_and_nothing_else(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    was = contents(bundle)
    process = start("build", bundle, "--flavour", "tensorrt-rtx")
    while process.poll() is None and not list(bundle.glob("engines/.*/vision_encoder.engine")):
        pass
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.split()) == (130, "", ["interrupted"])
    assert contents(bundle) == was


@pytest.mark.trt
def test_what_tensorrt_refuses_is_one_line(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(ConfigError, match=r"90 is not known to tensorrt-rtx .*; known: 75, 80, 86"):
        build_engines(bundle, _for("90"))
    (bundle / DECODER).write_bytes((bundle / DECODER).read_bytes().replace(b"Sigmoid", b"Sigmold"))
    data = json.loads((bundle / BUNDLE_JSON).read_text())
    data["files"][DECODER] = vars_of(bundle / DECODER)
    (bundle / BUNDLE_JSON).write_text(json.dumps(data))
    with pytest.raises(
        BackendError, match=r"tensorrt-rtx [\d.]+ does not take decoder\.onnx: .*Sigmold"
    ) as caught:
        build_engines(bundle, FAST)
    assert "\n" not in str(caught.value)


def vars_of(path: Path) -> dict[str, Any]:
    from safecode_trt.bundle import file_entry
    from safecode_trt.records import to_dict

    found: dict[str, Any] = to_dict(file_entry(path))
    return found
