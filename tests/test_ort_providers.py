"""ONNX Runtime's providers: where nodes are placed, what is missing, the plug-in, and what `auto` takes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.config import Backend, RuntimeConfig
from safecode_trt.engine import Engine
from safecode_trt.errors import BackendError, BundleError, ConfigError
from safecode_trt.manifest import BUNDLE_JSON, DECODER, VISION_ENCODER
from safecode_trt.runtime.backends import auto, ort_providers
from tests.cli_runner import call, fails
from tests.fake_cudart import FakeCuda
from tests.fake_gpu import FakeOrt
from tests.families import qwen2_vl
from tests.family_checkpoints import FamilyCheckpoints

REQUEST = "can i touch it?"
MakeGpu = Callable[..., FakeCuda]


def config(backend: Backend, **settings: bool) -> RuntimeConfig:
    return RuntimeConfig(backend=backend, threads=1, **settings)


def answer(bundle: Bundle, backend: Backend) -> tuple[int, ...]:
    with Engine.open(bundle.path, config=config(backend)) as engine:
        return tuple(engine.generate(REQUEST, mode="plain").token_ids)


# Where nodes are ----------------------------------------------------------------------------------


def test_nodes_left_to_the_cpu_are_named_and_refused(tiny_bundle: Bundle, gpu: MakeGpu) -> None:
    gpu(on_cpu=["Attention"])
    message = (
        r"leaves nodes of \S+decoder.onnx to the CPU: Attention /model/layers.0/\S+; .*--allow-cpu-fallback"
    )
    with pytest.raises(BackendError, match=message.replace("; ", r".*; ")):
        Engine.open(tiny_bundle.path, config=config("ort-cuda"))
    Engine.open(tiny_bundle.path, config=config("ort-cuda", allow_cpu_fallback=True)).close()
    result = call("run", tiny_bundle.path, REQUEST, "--backend", "ort-cuda")
    fails(result, 1, "--allow-cpu-fallback")
    assert (
        call("run", tiny_bundle.path, REQUEST, "--backend", "ort-cuda", "--allow-cpu-fallback").exit_code == 0
    )


def test_nodes_that_compute_shapes_may_be_on_the_cpu(made: FamilyCheckpoints, gpu: MakeGpu) -> None:
    bundle = made.bundle(qwen2_vl.CASE, attention="decomposed")
    shapes = bundle.manifest.shape_nodes[DECODER]
    nodes = {
        node.name: node.op_type
        for node in onnx.load(bundle.file(DECODER), load_external_data=False).graph.node
    }
    operators = {nodes[name] for name in shapes}
    assert {"Shape", "Range", "Expand"} <= operators
    assert not operators & {"MatMul", "Softmax", "ScatterElements", "DequantizeLinear", "Sqrt"}
    gpu(on_cpu=["Shape", "Range", "Expand"])
    Engine.open(bundle.path, config=config("ort-cuda")).close()
    with pytest.raises(BackendError, match="decomposed decoder in place"):
        Engine.open(bundle.path, config=config("ort-tensorrt"))
    gpu(on_cpu=["Add"])  # there are some of either kind
    with pytest.raises(BackendError, match="Add "):
        Engine.open(bundle.path, config=config("ort-cuda"))


def test_a_provider_that_takes_nothing_is_found_out(tiny_bundle: Bundle) -> None:
    """With the real ONNX Runtime: its package for the CPU has one more provider, which has no kernels."""
    azure = replace(ort_providers.CUDA, execution="AzureExecutionProvider", options={})
    if azure.execution not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CPU's provider only")
    with pytest.raises(BackendError, match="AzureExecutionProvider takes no node"):
        ort_providers.open_graph(tiny_bundle.file(DECODER), provider=azure)


def test_every_node_counts_on_the_real_cpu(tiny_bundle: Bundle) -> None:
    """The names that ONNX Runtime reports are those of the file."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(ort_providers.RECORD_PLACEMENT, "1")
    for name in (DECODER, VISION_ENCODER):
        path = tiny_bundle.file(name)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        left = ort_providers.cpu_nodes(session, ())
        assert len(left) > 20 and any(node.startswith("MatMul ") for node in left)
        assert len(ort_providers.cpu_nodes(session, [left[0].split(" ", 1)[1]])) == len(left) - 1
        in_file = {node.name for node in onnx.load(path, load_external_data=False).graph.node}
        assert sum(node.split(" ", 1)[1] in in_file for node in left) > len(left) / 2


def test_an_old_onnxruntime_refuses_by_itself(tiny_bundle: Bundle, gpu: MakeGpu) -> None:
    gpu(old=True)
    with pytest.raises(BackendError, match=r"fallback to .* --allow-cpu-fallback"):
        Engine.open(tiny_bundle.path, config=config("ort-cuda"))
    Engine.open(tiny_bundle.path, config=config("ort-cuda", allow_cpu_fallback=True)).close()


def test_a_listed_provider_that_does_not_load_is_an_error(tiny_bundle: Bundle, gpu: MakeGpu) -> None:
    gpu(broken=["CUDAExecutionProvider"])
    fails(
        call("run", tiny_bundle.path, REQUEST, "--backend", "ort-cuda"), 1, "is installed and does not load"
    )


@pytest.mark.parametrize(
    ("backend", "command"),
    [
        ("ort-cuda", "pip install 'safecode-trt[gpu]'"),
        ("ort-tensorrt", "pip install 'safecode-trt[gpu]'"),
        ("ort-trt-rtx", "pip install 'safecode-trt[ort-trt-rtx]'"),
    ],
)
def test_a_provider_that_is_not_installed_says_what_installs_it(
    tiny_bundle: Bundle, backend: Backend, command: str
) -> None:
    execution = ort_providers.PROVIDERS[backend].execution
    if execution in onnxruntime.get_available_providers():
        pytest.skip("it is installed")
    fails(call("run", tiny_bundle.path, REQUEST, "--backend", backend), 1, command)


def changed_manifest(bundle: Bundle, folder: Path, shape_nodes: object) -> Path:
    """A copy of the bundle whose manifest has other shape nodes."""
    shutil.copytree(bundle.path, folder)
    document = json.loads((folder / BUNDLE_JSON).read_text())
    (folder / BUNDLE_JSON).write_text(json.dumps({**document, "shape_nodes": shape_nodes}))
    return folder


def test_without_names_in_the_manifest_every_node_counts(
    made: FamilyCheckpoints, gpu: MakeGpu, tmp_path: Path
) -> None:
    bundle = made.bundle(qwen2_vl.CASE, attention="decomposed")
    folder = changed_manifest(bundle, tmp_path / "bundle", {})
    gpu(on_cpu=["Range"])
    with pytest.raises(BackendError, match=r"leaves nodes of \S+ to the CPU: Range "):
        Engine.open(folder, config=config("ort-cuda"))
    Engine.open(folder, config=config("ort-cuda", allow_cpu_fallback=True)).close()


@pytest.mark.parametrize(
    "wrong",
    [
        ["/new/Range"],
        {DECODER: "/new/Range"},
        {DECODER: [7]},
        {DECODER: [""]},
        {DECODER: ["/new/Range\n"]},
        {DECODER: ["\x1b[2J"]},
        {"onnx/another.onnx": []},
    ],
)
def test_what_are_no_names_of_nodes_is_refused(tiny_bundle: Bundle, tmp_path: Path, wrong: object) -> None:
    with pytest.raises(BundleError, match="shape_nodes"):
        Bundle.open(changed_manifest(tiny_bundle, tmp_path / "bundle", wrong))


def computed_from_shapes_alone(path: Path) -> set[str]:
    """The nodes whose outputs stay the same when all floats, those of inputs and of weights, are others."""
    model = onnx.load(path)
    graph = model.graph
    for value in {name for node in graph.node for name in node.output} - {o.name for o in graph.output}:
        graph.output.append(onnx.ValueInfoProto(name=value))
    found: list[dict[str, np.ndarray]] = []
    for seed in (1, 2):
        draw = np.random.Generator(np.random.PCG64(seed))
        for weight in graph.initializer:
            array = onnx.numpy_helper.to_array(weight)
            if array.dtype == np.float32 and array.size > 1:
                other = (0.1 * draw.standard_normal(array.shape)).astype(np.float32)
                weight.CopyFrom(onnx.numpy_helper.from_array(other, weight.name))
        feeds = {}
        for given in graph.input:
            shape = [axis.dim_value or 3 for axis in given.type.tensor_type.shape.dim]
            floats = given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
            feeds[given.name] = (
                draw.uniform(0.5, 1.5, shape).astype(np.float32) if floats else np.zeros(shape, int)
            )
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found.append(dict(zip(names, session.run(names, feeds), strict=True)))
    same = {name for name, value in found[0].items() if np.array_equal(value, found[1][name])}
    return {node.name for node in graph.node if set(node.output) <= same}


def test_shape_nodes_are_those_that_no_number_changes(made: FamilyCheckpoints) -> None:
    """Held against what ONNX Runtime computes at every node from other weights and other inputs of the same shapes."""
    bundle = made.bundle(qwen2_vl.CASE, attention="decomposed")
    named = set(bundle.manifest.shape_nodes[DECODER])
    assert len(named) > 5 and computed_from_shapes_alone(bundle.file(DECODER)) == named


# The plug-in ---------------------------------------------------------------------------------------


class FakePlugin:
    """onnxruntime_ep_nv_tensorrt_rtx 0.5, as far as it is used."""

    def get_ep_name(self) -> str:
        return "NvTensorRTRTXExecutionProvider"

    def get_library_path(self) -> str:
        return "libonnxruntime_providers_nv_tensorrt_rtx.so"


class Device:
    def __init__(self, ep_name: str) -> None:
        self.ep_name = ep_name


def plug_in(ort: FakeOrt, found: int) -> list[tuple[str, str]]:
    """Gives a fake ONNX Runtime the functions for plug-ins; returns the registrations."""
    registered: list[tuple[str, str]] = []
    placed = ort.InferenceSession

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_provider_for_devices(self, devices: list[Device], options: dict[str, str]) -> None:
            assert len(devices) == 1 and options == {}
            self.chosen = devices[0].ep_name

    def session(path: str, options: Options, *, enable_fallback: int) -> object:
        return placed(path, options, providers=[(options.chosen, {})], enable_fallback=enable_fallback)

    session.get_provider_graph_assignment_info = None  # type: ignore[attr-defined]

    def devices() -> list[Device]:
        return [
            Device("CPUExecutionProvider"),
            *(Device(name) for name, _ in registered for _ in range(found)),
        ]

    vars(ort).update(
        SessionOptions=Options,
        InferenceSession=session,
        get_ep_devices=devices,
        register_execution_provider_library=lambda name, path: registered.append((name, path)),
    )
    return registered


def test_the_plug_in_is_registered_once_and_runs(
    tiny_bundle: Bundle, gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(tiny_bundle, "ort-cpu")
    gpu()
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", FakePlugin())
    registered = plug_in(sys.modules["onnxruntime"], found=2)  # type: ignore[arg-type]
    assert answer(tiny_bundle, "ort-trt-rtx") == answer(tiny_bundle, "ort-trt-rtx") == expected
    assert registered == [("NvTensorRTRTXExecutionProvider", "libonnxruntime_providers_nv_tensorrt_rtx.so")]


def test_a_plug_in_without_a_gpu_says_so(
    tiny_bundle: Bundle, gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu()
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", FakePlugin())
    plug_in(sys.modules["onnxruntime"], found=0)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="finds no GPU that it supports"):
        Engine.open(tiny_bundle.path, config=config("ort-trt-rtx"))


# auto ----------------------------------------------------------------------------------------------


def test_auto_takes_the_cpu_and_says_why(tiny_bundle: Bundle) -> None:
    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("there may be a GPU")
    result = call("run", tiny_bundle.path, REQUEST, "--backend", "auto", "--max-new-tokens", 2)
    assert result.exit_code == 0
    note = result.stderr.splitlines()
    assert note[0] == "backend: ort-cpu"
    assert [line.split(":")[0] for line in note[1:5]] == [
        f"  not {name}" for name in ("trt", "ort-tensorrt", "ort-trt-rtx", "ort-cuda")
    ]
    quiet = call("--quiet", "run", tiny_bundle.path, REQUEST, "--backend", "auto", "--max-new-tokens", 2)
    assert quiet.stderr == "" and quiet.stdout == result.stdout


def test_auto_passes_over_what_does_not_execute(
    tiny_bundle: Bundle, gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(broken=["TensorrtExecutionProvider"])
    notes: list[str] = []
    with Engine.open(tiny_bundle.path, config=config("auto"), note=notes.append) as engine:
        assert engine.model.session.name == "ort-cuda"
    assert "not ort-tensorrt: TensorrtExecutionProvider is installed and does not load" in notes[0]
    real_step, tried = auto.try_step, list[str]()

    def fails_on_the_gpu(session: object, bundle: Bundle) -> None:
        tried.append(session.name)  # type: ignore[attr-defined]
        if tried[-1] == "ort-cuda":
            raise BackendError("an illegal memory access")
        real_step(session, bundle)  # type: ignore[arg-type]

    monkeypatch.setattr(auto, "try_step", fails_on_the_gpu)
    with Engine.open(tiny_bundle.path, config=config("auto"), note=notes.append) as engine:
        assert engine.model.session.name == "ort-cpu"
    assert tried == ["ort-cuda", "ort-cpu"] and "not ort-cuda: an illegal memory access" in notes[1]


def test_auto_without_any_backend_names_them_all(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"no backend runs .*trt: .*ort-cpu: onnxruntime is not installed"):
        Engine.open(tiny_bundle.path, config=config("auto"))


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ConfigError, match="backend must be one of ort-cpu, "):
        RuntimeConfig(backend="cuda")  # type: ignore[arg-type]
