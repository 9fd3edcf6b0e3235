"""Who may import whom, read from the sources; and what an import of the runtime really loads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from safecode_trt.cli import VERBS

ROOT = Path(__file__).parents[1] / "safecode_trt"
LAYERS = (
    (
        "errors",
        "remedies",
        "progress",
        "atomic",
        "deadline",
        "json_lines",
        "interrupt",
        "records",
        "cache_folder",
        "config",
        "contract",
        "calibration",
        "engine_entry",
        "parity_report",
        "manifest",
        "bundle",
        "upgrade",
        "tensors",
        "machine",
        "text_table",
        "ops",
        "endpoint",
    ),
    ("models", "policy"),
    ("runtime",),
    ("engine",),
    ("trace",),
    ("export", "eval", "bench", "doctor"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
EXPORT_ONLY = {"huggingface_hub", "torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum"}
# All of it but what plans, policies and plain decoding are.
# Not verdict.py: it is no policy, and the judges in the runtime read logits as a policy's row does.
FORBIDDEN_AT_RUNTIME = {"safecode_trt.policy"} | {
    f"safecode_trt.policy.{name}"
    for name in ("contrast", "modes", "gate", "modulation", "release", "stage", "staged")
}
FACE = "__init__"


def sources() -> list[Path]:
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(ROOT, followlinks=True)
        for name in names
        if name.endswith(".py")
    ]
    return sorted(found)


def room(path: Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def wrong_layers(path: Path) -> set[str]:
    """What a file imports from a higher layer, or from another part of its own."""
    own = room(path)
    if own == FACE:
        return set()
    rooms = {name.split(".")[1] for name in imports(parse(path)) if name.startswith("safecode_trt.")}
    above = {name for name in rooms & set(RANK) if RANK[name] > RANK[own]}
    level = rooms & set(LAYERS[RANK[own]]) - {own} if RANK[own] > 0 else set()
    return above | level


def heavy(path: Path) -> set[str]:
    """The packages that only an export may load, in a file elsewhere."""
    if room(path) == "export":
        return set()
    return {name.split(".")[0] for name in imports(parse(path))} & EXPORT_ONLY


def particular_policies(path: Path) -> set[str]:
    """The policies that a file of the runtime knows."""
    return set(imports(parse(path))) & FORBIDDEN_AT_RUNTIME if room(path) == "runtime" else set()


CHECKS = (wrong_layers, heavy, particular_policies)


def test_imports_go_down() -> None:
    assert {shown(path): found for path in sources() if (found := wrong_layers(path))} == {}


def cycles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The groups of modules of which each can be reached from each other (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in graph.get(node, ()):
                found.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def module_graph() -> dict[str, set[str]]:
    """Every module of the package and those that it names, for types alone or within a function, too."""
    named = ((("safecode_trt", *path.relative_to(ROOT).with_suffix("").parts), path) for path in sources())
    names = {".".join(parts).removesuffix(".__init__"): path for parts, path in named}
    del names["safecode_trt"]  # the face, which loads what it shows when it is asked for
    return {
        name: {each for each in imports(parse(path)) if each in names and each != name}
        for name, path in names.items()
    }


def test_no_module_needs_itself() -> None:
    graph = module_graph()
    assert cycles(graph) == []
    assert "safecode_trt.runtime.model" in graph["safecode_trt.engine"]


def test_a_cycle_is_found() -> None:
    assert cycles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]
    graph = module_graph()
    graph["safecode_trt.runtime.model"].add("safecode_trt.engine")
    (found,) = cycles(graph)
    assert {"safecode_trt.engine", "safecode_trt.runtime.model"} <= set(found)


def test_the_documents_list_the_layers_as_they_are() -> None:
    rooms = {room(path) for path in sources()} - {FACE}
    assert rooms == set(RANK)
    listed = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not [layer for layer in LAYERS[:-2] if f"`{' '.join(layer)}`" not in listed]
    drawn = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = drawn.split("## Who may import whom")[1].split("## Who owns memory")[0]
    assert rooms - {"__main__"} <= set(drawn.split()) and "server" not in drawn


def test_heavy_packages_stay_in_export() -> None:
    assert {shown(path): found for path in sources() if (found := heavy(path))} == {}


def test_only_the_command_line_talks_to_a_terminal() -> None:
    below = [path for path in sources() if room(path) not in ("cli", "__main__")]
    loaded = {(room(path), name.split(".")[0]) for path in below for name in imports(parse(path))}
    assert len(below) > 100 and not [pair for pair in loaded if pair[1] in ("click", "rich")]


def test_the_runtime_does_not_know_safecode() -> None:
    assert {shown(path): found for path in sources() if (found := particular_policies(path))} == {}


def test_verbs_load_what_they_need_when_they_run() -> None:
    ours = {f"safecode_trt.{name}" for name in ("bench", "doctor", "engine", "eval", "export", "runtime")}
    others = {"numpy", "rich", "onnxruntime"}
    verbs = [path for path in sources() if room(path) == "cli" and path.stem in VERBS]
    for path in verbs:
        at_import = [node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        loaded = {name for node in at_import for name in imports(node)}
        assert not {".".join(name.split(".")[:2]) for name in loaded} & ours, path.name
        assert not {name.split(".")[0] for name in loaded} & others, path.name
    assert len(verbs) == len(VERBS)


def loaded_by(statement: str, *paths: Path) -> set[str]:
    """The top-level modules in memory after a statement in a new interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    search = os.pathsep.join(map(str, (*paths, ROOT.parent)))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": search}
    )
    return set(done.stdout.split())


NOT_ON_A_DEVICE = EXPORT_ONLY | {"tensorrt", "tensorrt_rtx", "matplotlib", "rich", "click"}


@pytest.mark.parametrize(
    "statement",
    [
        "import safecode_trt.runtime",
        "import safecode_trt.policy",
        "import safecode_trt.models.idefics3",
        "import safecode_trt.runtime.backends.ort",
    ],
)
def test_a_device_loads_neither_torch_nor_onnx(statement: str) -> None:
    assert not loaded_by(statement) & NOT_ON_A_DEVICE


def test_engines_are_built_without_torch() -> None:
    """On the device itself, where TensorRT builds for its GPU."""
    loaded = loaded_by("import safecode_trt.export.build, safecode_trt.export.engine_graph")
    assert not loaded & {"torch", "transformers", "onnxscript", "tensorrt", "tensorrt_rtx"}


def test_the_command_line_starts_without_numerics() -> None:
    statement = (
        "from safecode_trt.cli import VERBS, program\nfor verb in VERBS: program.get_command(None, verb)"
    )
    assert not loaded_by(statement) & (EXPORT_ONLY | {"numpy", "onnxruntime", "rich", "tokenizers"})


def test_the_subprocess_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "innocent.py").write_text("import torch")
    assert loaded_by("import innocent", tmp_path) & NOT_ON_A_DEVICE == {"torch"}


def test_the_order_check_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guilty = tmp_path / "runtime" / "guilty.py"
    guilty.parent.mkdir()
    guilty.write_text(
        "def f() -> None:\n    from safecode_trt.policy import modes\n    import torch\n    import safecode_trt.cli\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [bool(check(guilty)) for check in CHECKS] == [True, True, True]
