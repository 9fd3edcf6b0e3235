"""Holds the exported graphs against transformers in float32: through the runtime's own session and feeds.

Each probe is answered greedily by transformers; the exported graphs are then led along the same tokens, all
probes as rows of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safecode_trt.bundle import Bundle
from safecode_trt.contract import Precision
from safecode_trt.errors import CheckpointError
from safecode_trt.export.agreement import LEAST_TOP1, MOST_NOISE, measure_agreement
from safecode_trt.export.prequantized import float_checkpoint
from safecode_trt.export.probes import TextProbe, make_probes
from safecode_trt.manifest import EMBEDDINGS
from safecode_trt.models import Features, ModelSpec, load_spec
from safecode_trt.parity_report import GraphParity, Parity
from safecode_trt.progress import Progress
from safecode_trt.runtime.contexts import row_keys, row_prompt
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.image_features import encode_pictures
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.prompt import PromptBuilder
from safecode_trt.runtime.session import Session
from safecode_trt.tensors import map_tensors

if TYPE_CHECKING:
    from safecode_trt.export.reference_model import TransformersModel

__all__ = [
    "Answer",
    "answer_probes",
    "compare",
    "require_passed",
    "verify_session",
]

Array = NDArray[np.float32]
REPLY_TOKENS = 24
FP32_ABSOLUTE, FP32_RELATIVE = 2e-4, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What transformers makes of a probe: features of its picture if it has one, a greedy reply, and logits.

    `logits` (led + len(reply) - 1, V) belong to the prompt's last `led` positions and to the reply's.
    """

    features: Features
    reply: tuple[int, ...]
    logits: Array


def verify_session(session: Session, bundle: Bundle, checkpoint: Path, report: Progress) -> Parity:
    """Compares what a bundle computes, of its own prompts and embeddings, with the checkpoint it was made of.

    Raises:
        CheckpointError: they do not do the same, or transformers cannot run the checkpoint.
    """
    manifest, folder = bundle.manifest, bundle.path
    spec = load_spec(folder, max_tiles=manifest.max_tiles)
    probes = make_probes(spec, PromptBuilder(folder, spec))
    report("comparison", 0, 2)
    ends = manifest.special_tokens.eos_token_ids
    answers = answer_probes(checkpoint, spec, probes, ends, scratch=folder.parent)
    report("comparison", 1, 2)
    table = map_tensors(bundle.file(EMBEDDINGS))["embed_tokens"]
    builder = FeedBuilder(spec.text, table, manifest.geometry.context_length)
    # What the coarser of the two graphs may be off by.
    precisions = (manifest.precision, *([manifest.vision_precision] if manifest.vision_precision else []))
    coarser = min(precisions, key=LEAST_TOP1.__getitem__)
    parity = compare(session, builder, spec, probes, answers, coarser)
    report("comparison", 2, 2)
    require_passed(parity, coarser)
    return parity


def answer_probes(
    folder: Path,
    spec: ModelSpec,
    probes: Sequence[TextProbe],
    ends: Sequence[int],
    *,
    scratch: Path | None = None,
) -> list[Answer]:
    """What transformers answers; the model is loaded here and given up again.

    Raises:
        CheckpointError: transformers cannot read the checkpoint in `folder`, or there is no room in `scratch`.
    """
    from safecode_trt.export.reference_model import TransformersModel

    with float_checkpoint(folder, scratch) as readable:
        try:
            model = TransformersModel(readable, spec)
        except OSError as error:
            raise CheckpointError(
                f"transformers cannot read {folder}: {error.strerror or str(error).splitlines()[0]}"
            ) from error
        return [_answer(model, probe, ends) for probe in probes]


def _answer(model: TransformersModel, probe: TextProbe, ends: Sequence[int]) -> Answer:
    reply = model.greedy(probe, REPLY_TOKENS, ends)
    logits = model.logits(probe, reply[:-1])[len(probe.token_ids) - probe.led :]
    return Answer(features=model.features(probe), reply=reply, logits=logits)


def compare(
    session: Session,
    builder: FeedBuilder,
    spec: ModelSpec,
    probes: Sequence[TextProbe],
    answers: Sequence[Answer],
    precision: Precision,
) -> Parity:
    """The parity of a session's graphs with transformers' answers.

    Raises:
        CapacityError: a probe does not fit into the cache.
    """
    encoded = iter(
        encode_pictures(session, spec, [picture for probe in probes for picture in probe.pictures])
    )
    features: list[Features] = [next(encoded) if probe.pictures else {} for probe in probes]
    led = _lead(session, builder, spec, probes, features, [answer.reply for answer in answers])
    kept = total = 0
    for probe, answer, logits in zip(probes, answers, led, strict=True):
        same = logits[probe.led - 1 :].argmax(-1) == np.array(answer.reply)
        kept += len(same) if same.all() else int(same.argmin())
        total += len(same)
    vision = _worst(
        [
            _difference(
                np.concatenate([found[name] for found in features]),
                np.concatenate([answer.features[name] for answer in answers]),
            )
            for name in answers[0].features
        ]
    )
    found_logits, expected_logits = np.concatenate(led), np.concatenate([answer.logits for answer in answers])
    decoder = _difference(found_logits, expected_logits)
    graphs = [decoder] if vision is None else [decoder, vision]
    agreement, greedy = measure_agreement(found_logits, expected_logits), kept / total
    passed = agreement.holds(precision) and all(np.isfinite(graph.max_abs_difference) for graph in graphs)
    if precision == "fp32":
        passed = passed and greedy == 1.0 and all(map(_close, graphs))
    return Parity(
        probes=len(probes),
        vision_encoder=vision,
        decoder=decoder,
        top1_agreement=agreement.top1,
        top1_within_noise=agreement.top1_within_noise,
        logit_noise=agreement.noise,
        greedy_agreement=greedy,
        passed=passed,
    )


def require_passed(parity: Parity, precision: Precision) -> None:
    """Refuses an export that does not do what the checkpoint does.

    Raises:
        CheckpointError: the comparison has not passed.
    """
    if not parity.passed:
        raise CheckpointError(
            f"the exported {precision} graphs differ from transformers: top-1 agreement but for near ties "
            f"{parity.top1_within_noise:.3f} (expected at least {LEAST_TOP1[precision]}), noise of the logits "
            f"{parity.logit_noise:.2g} (at most {MOST_NOISE[precision]}), greedy agreement "
            f"{parity.greedy_agreement:.3f}, {parity.largest_differences}",
            fix="choose a higher --precision, or pass --no-verify to export anyway",
        )


def _lead(
    session: Session,
    builder: FeedBuilder,
    spec: ModelSpec,
    probes: Sequence[TextProbe],
    features: Sequence[Features],
    replies: Sequence[Sequence[int]],
) -> list[Array]:
    """Logits of each probe's compared positions: one prefill, then the remaining tokens one by one."""
    cache = KVCache(session.allocate(len(probes)), rows=len(probes))
    rows, starts = [], []
    for probe, seen, reply in zip(probes, features, replies, strict=True):
        token_ids = np.append(probe.token_ids, reply[:-1]).astype(np.int64)
        keys = row_keys(token_ids, 0, spec.image_token_id)
        rows.append(
            row_prompt(token_ids, keys, seen, [picture.layout for picture in probe.pictures], spec, builder)
        )
        starts.append(len(probe.token_ids) - probe.led + 1)
    logits: list[list[Array]] = [[] for _ in rows]
    done = np.zeros(len(rows), np.int64)
    counts = np.array(starts, np.int64)
    while counts.any():
        cache.require(int(counts.max()))
        found = session.decode(builder.feeds(rows, counts, cache), cache.memory).logits[:, 0]
        cache.advance(counts)
        done += counts
        for kept, row_logits, count in zip(logits, found, counts, strict=True):
            if count:
                kept.append(row_logits.copy())
        counts = np.array([int(at < len(row)) for row, at in zip(rows, done, strict=True)], np.int64)
    return [np.stack(kept) for kept in logits]


def _difference(found: Array, expected: Array) -> GraphParity:
    """The largest difference, and its share of the largest value."""
    largest = float(np.abs(found - expected).max())
    return GraphParity(
        max_abs_difference=largest,
        max_rel_difference=largest / max(float(np.abs(expected).max()), 1e-30),
    )


def _worst(differences: Sequence[GraphParity]) -> GraphParity | None:
    """The largest difference and the largest share, each wherever it is; NaN where one is NaN, None of nothing."""
    if not differences:
        return None
    return GraphParity(
        max_abs_difference=float(np.max([found.max_abs_difference for found in differences])),
        max_rel_difference=float(np.max([found.max_rel_difference for found in differences])),
    )


def _close(graph: GraphParity) -> bool:
    return graph.max_abs_difference <= FP32_ABSOLUTE or graph.max_rel_difference <= FP32_RELATIVE
