"""TensorRT-RTX builds every family's graphs for real, in all forms; no engine runs without a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.contract import Activations, AttentionForm, Precision, decoder_graph
from safecode_trt.engine_entry import EngineEntry
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER
from safecode_trt.models import load_spec
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.trt_engine import TrtEngine
from safecode_trt.runtime.backends.trt_library import TensorRTLibrary
from safecode_trt.runtime.device import cuda_device
from safecode_trt.runtime.engine_choice import engine_spec
from tests.families import FamilyCase, cases
from tests.family_checkpoints import FamilyCheckpoints
from tests.null_bundle import DEMO

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

import onnx_ir as ir

from safecode_trt.export import ExportConfig, export_bundle
from safecode_trt.export.build import build_engines
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.decoder import write_decoder
from safecode_trt.export.engine_builder import TensorRT
from safecode_trt.export.engine_config import EngineConfig
from safecode_trt.export.engine_graph import engine_graph
from safecode_trt.export.engine_profiles import decoder_profiles, shapes
from safecode_trt.export.package import geometry

FAST = EngineConfig(
    flavour="tensorrt-rtx", compute_capabilities=("86",), opt_level=0, max_prefill=64, max_picture=(96, 64)
)


def built_for_real(path: Path, config: EngineConfig = FAST) -> EngineEntry:
    """Builds, and reads what the plan says of itself: the names of its inputs and outputs, for each profile."""
    trt = pytest.importorskip("tensorrt_rtx")
    entry = build_engines(path, config)
    bundle = Bundle.open(path, check_hashes=True)
    assert bundle.manifest.engines == (entry,) and entry.version == trt.__version__
    for name, graph in entry.graphs.items():
        plan = bundle.file(graph.file).read_bytes()
        tensors = bundle.manifest.graphs[name]
        assert all(tensor.name.encode() in plan for tensor in (*tensors.inputs, *tensors.outputs))
        assert (b"[profile 1]" in plan) == (len(graph.profiles) == 2) and b"[profile 2]" not in plan
    return entry


@pytest.mark.trt
@pytest.mark.parametrize(("precision", "activations"), [("fp16", None), ("int4", "fp16")])
def test_the_demo_model_builds(precision: Precision, activations: Activations | None, tmp_path: Path) -> None:
    config = ExportConfig(precision=precision, activations=activations, verify=False)
    bundle = export_bundle(DEMO, tmp_path / "bundle", config=config)
    several = EngineConfig(flavour="tensorrt-rtx", compute_capabilities=("86", "89", "120"), opt_level=0)
    entry = built_for_real(bundle.path, several)
    assert entry.activations == "fp16" and entry.compute_capabilities == ("86", "89", "120")
    check_loading(Bundle.open(bundle.path), entry, tmp_path / "other")


def check_loading(bundle: Bundle, entry: EngineEntry, other: Path) -> None:
    """What the runtime gets from TensorRT-RTX on a machine without a GPU: its own engines are known, and need one."""
    library, stream = TensorRTLibrary.load("tensorrt-rtx"), cast(CudaStream, None)
    engine, graph = bundle.file(entry.graphs[DECODER].file), bundle.manifest.graphs[DECODER]
    if cuda_device() is None:
        with pytest.raises(
            BackendError, match=r"does not load .*decoder\.engine: .*Cuda Runtime .*cudaError"
        ):
            TrtEngine(library, engine, graph, stream)
    other.write_bytes(bytes(10_000))
    with pytest.raises(BackendError, match=r"does not load .*other: .*Serialization .*magicTag"):
        TrtEngine(library, other, graph, stream)


def every_family() -> list[Any]:
    """In fp16; in int4 those whose decoders have inputs of their own, which the demo model's has not."""
    found = [pytest.param(case, "fp16", None, id=case.model_type) for case in cases()]
    own = [case for case in cases() if case.model_type in ("idefics", "qwen3_vl")]
    return found + [pytest.param(case, "int4", "fp16", id=f"{case.model_type}-int4") for case in own]


@pytest.mark.trt
@pytest.mark.parametrize(("case", "precision", "activations"), every_family())
def test_every_family_builds(
    case: FamilyCase,
    precision: Precision,
    activations: Activations | None,
    made: FamilyCheckpoints,
    tmp_path: Path,
) -> None:
    bundle = made.bundle(case, precision, activations=activations)
    built_for_real(shutil.copytree(bundle.path, tmp_path / "bundle"))


@pytest.mark.trt
def test_a_portable_decoder_in_fp32_is_rewritten(tiny_bundle: Bundle, tmp_path: Path) -> None:
    entry = built_for_real(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    assert (tiny_bundle.manifest.attention, entry.attention) == ("portable", "decomposed")


@pytest.mark.trt
@pytest.mark.parametrize(
    ("precision", "activations", "attention"),
    [
        ("bf16", "bf16", "portable"),
        ("bf16", "bf16", "decomposed"),
        ("fp16", "fp16", "decomposed"),
        ("int8", "fp16", "portable"),
        ("int8", "fp32", "decomposed"),
        ("int4", "fp32", "decomposed"),
    ],
)
def test_other_decoders_build(
    precision: Precision,
    activations: Activations,
    attention: AttentionForm,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    spec, path = load_spec(tiny_checkpoint), tmp_path / "decoder.onnx"
    sizes = geometry(spec, ExportConfig(context_length=64))
    write_decoder(
        Checkpoint(tiny_checkpoint),
        spec,
        sizes,
        path,
        precision=precision,
        attention=attention,
        activations=activations,
    )
    decoder = decoder_graph(sizes, precision, activations=activations)
    profiles = decoder_profiles(spec, (spec.vision_graph("float16"), decoder), 64, FAST)
    graph = engine_spec(decoder, 64)
    plan = TensorRT.load("tensorrt-rtx").build(
        engine_graph(ir.load(path), graph),
        path,
        [shapes(graph, profile) for profile in profiles],
        FAST,
        lambda phase, done, total: None,
        lambda text: None,
    )
    assert b"present.0.key" in bytes(plan)
