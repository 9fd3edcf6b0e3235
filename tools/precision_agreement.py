"""How often each precision has the same best token as transformers in float32: the demo model on its own pictures.

python tools/precision_agreement.py

Over all text of the prompts and the greedy replies, given the same past. Replies are what the model was trained for;
it was never asked to continue a question.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import drawn_world
from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.export import ExportConfig, WeightConfig, export_bundle
from safecode_trt.export.package import special_tokens
from safecode_trt.export.parity import Answer, answer_probes, compare
from safecode_trt.export.probes import Probe
from safecode_trt.manifest import EMBEDDINGS
from safecode_trt.models import ModelSpec, load_spec
from safecode_trt.parity_report import Parity
from safecode_trt.runtime.backends import open_session
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.image import normalise, picture_views
from safecode_trt.runtime.image_features import PictureInput
from safecode_trt.runtime.prompt import Message, PromptBuilder
from safecode_trt.tensors import map_tensors
from safecode_trt.text_table import TextTable, markdown

__all__ = ["answered", "parity"]

DEMO = Path(__file__).parents[1] / "models" / "demo"
BLOCKS = WeightConfig(block_size=32)
WAYS = {
    "fp32": ExportConfig(precision="fp32", verify=False),
    "fp16": ExportConfig(precision="fp16", verify=False),
    "int8, a scale per output": ExportConfig(precision="int8", verify=False),
    "int8, blocks of 32": ExportConfig(precision="int8", weights=BLOCKS, verify=False),
    "int4, head in int8": ExportConfig(precision="int4", verify=False),
    "int4": ExportConfig(precision="int4", weights=WeightConfig(lm_head="int4"), verify=False),
}


def _probes(spec: ModelSpec, count: int) -> Iterator[Probe]:
    prompts = PromptBuilder(DEMO, spec)
    for item in drawn_world.items("validation", count):
        picture = drawn_world.render(item)
        layout = spec.layout(*picture.size)
        token_ids = prompts.encode([Message(role="user", text=item.request, images=1)], [layout])
        views = normalise(picture_views(picture, layout, spec.resample), spec)
        led = len(token_ids) - 1 - int(np.flatnonzero(token_ids == spec.image_token_id).max())
        yield Probe(picture=PictureInput(layout=layout, views=views), token_ids=token_ids, led=led)


def answered(count: int) -> tuple[Sequence[Probe], Sequence[Answer]]:
    """Questions of the validation split, and what transformers makes of them."""
    spec = load_spec(DEMO)
    probes = list(_probes(spec, count))
    return probes, answer_probes(DEMO, spec, probes, special_tokens(DEMO, spec).eos_token_ids)


def parity(bundle: Bundle, probes: Sequence[Probe], answers: Sequence[Answer]) -> Parity:
    """The comparison that an export makes, on these probes."""
    spec, manifest = load_spec(DEMO), bundle.manifest
    table = map_tensors(bundle.file(EMBEDDINGS))["embed_tokens"]
    builder = FeedBuilder(spec.text, table, manifest.geometry.context_length)
    with closing(open_session(bundle, RuntimeConfig())) as session:
        return compare(session, builder, spec, probes, answers, manifest.precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=120, help="questions of the validation split")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    probes, answers = answered(given.items)
    rows = []
    with TemporaryDirectory() as folder:
        for number, (name, config) in enumerate(WAYS.items()):
            found = parity(export_bundle(DEMO, Path(folder, str(number)), config=config), probes, answers)
            shares = (
                found.top1_agreement,
                found.top1_within_noise,
                found.greedy_agreement,
                found.logit_noise,
            )
            rows.append((name, *(f"{share:.2%}" for share in shares)))
    columns = ("weights", "same best token", "but for near ties", "greedy replies", "noise of the logits")
    positions = sum(len(answer.logits) for answer in answers)
    table = TextTable(title=f"Over {positions} positions", columns=columns, rows=tuple(rows))
    command = shlex.join(["python", "tools/precision_agreement.py", *sys.argv[1:]])
    text = (
        "# Agreement of the precisions with transformers in float32\n\n"
        f"- `{command}`\n"
        f"- the demo model on {given.items} questions of its validation split, prompts and replies\n"
        "- near ties are defined in `export/agreement.py`; the noise is a share of the logits' spread\n\n"
        f"{markdown(table)}"
    )
    print(text)
    if given.report:
        given.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
