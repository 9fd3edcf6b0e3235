"""Writes the graphs that `safecode-trt doctor` executes into safecode_trt/doctor/probes/.

Needed where `export/attention.py` or the probe's numbers change; tests/test_probes.py compares the files with it.

Example:
    python tools/write_probes.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import onnx_ir as ir

from safecode_trt.contract import ATTENTION_FORMS
from safecode_trt.doctor import probe
from safecode_trt.export.probe_graphs import probe_graph
from safecode_trt.export.shape_nodes import shape_nodes

__all__ = ["write_probes"]


def write_probes(folder: Path) -> None:
    """Writes a graph for each form and type, and the names of their nodes that only compute shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for form in ATTENTION_FORMS:
        for dtype in probe.DTYPES:
            model = probe_graph(
                form,
                dtype,
                probe.GEOMETRY,
                probe.weights(dtype),
                epsilon=probe.EPSILON,
                inputs=probe.feeds(dtype),
                outputs={name: x.shape for name, x in probe.expected(dtype).items()},
            )
            path = folder / probe.graph_path(form, dtype).name
            ir.save(model, path)
            names[path.name] = shape_nodes(path)
    (folder / probe.SHAPE_NODES.name).write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None).parse_args()
    write_probes(probe.FOLDER)


if __name__ == "__main__":
    main()
