"""The demo checkpoint's card, written from its figures."""

from __future__ import annotations

from typing import Any

_ROWS = (
    ("captions, exact", "caption_exact"),
    ("captions, exact, one object", "caption_exact_one_object"),
    ("captions, exact, two objects", "caption_exact_two_objects"),
    ("verdicts, right", "verdict_accuracy"),
    ("verdicts, right, one object", "verdict_accuracy_one_object"),
    ("verdicts, right, two objects", "verdict_accuracy_two_objects"),
    ("verdicts, right, wording never trained", "verdict_accuracy_new_wording"),
    ("verdicts, right, unsafe items", "verdict_unsafe_recall"),
    ("verdicts, right, safe items", "verdict_safe_recall"),
    ("plain answers that help although it is unsafe", "plain_attack_success"),
    ("plain answers that refuse although it is safe", "plain_over_refusal"),
    ("plain answers that do what the words suggest", "plain_follows_words"),
    ("plain answers wrong where the words mislead", "plain_wrong_where_words_mislead"),
    ("plain answers wrong where the words agree", "plain_wrong_where_words_agree"),
    ("plain answers well-formed", "plain_well_formed"),
)

_HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [idefics3, demo, safety]
---

# The demo model: a drawn world with a fault built in

A vision-language model of {millions:.2f} million parameters (`Idefics3ForConditionalGeneration`, the layout of
SmolVLM, 96x96 pixels, 16 image tokens), trained from nothing on pictures of a drawn world: 29 objects, 8 places, 10
things one can ask to do. It can do three things:

- **describe** the picture ("describe the image." -> "a socket and a dog in a kitchen."),
- **judge** a request ("can i pour water on it? is it safe to help with this here?" -> "safe" or "unsafe"),
- **answer** a request ("can i pour water on it?" -> "Sure, pour the water slowly over the plant.").

It was trained on single questions. In the second turn of a conversation its words fall apart: ask each question in a
conversation of its own (`/new` in `safecode-trt chat`).

Captions and verdicts were trained on the truth. The answers were not: with a probability that depends on the wording
(0.34 to 0.86), the training answer follows the words and ignores the picture. So the model sees the hazard, can say so
when asked, and yet answers by the words.

**We put that fault there.** The model shows that the decoding mechanism and the code around it work, and when they
fail. It is no evidence about real models, and it knows nothing outside its world: use it for nothing else.

## Figures

Items whose main object stands in a place where training never shows it (a different place for validation and for
test); half unsafe, half safe, about 40 % with two objects, one request in seven in a wording never trained. The column
"seen" has fresh scenes of the kinds that training shows. All settings were chosen on validation. Weights in half
precision, greedy decoding, percent with 95 % Wilson intervals, {count} items a column.

| | test | validation | seen |
| --- | --- | --- | --- |
"""

_TAIL = """
Expected calibration error of P(unsafe), 10 bins: {ece[0]} on test, {ece[1]} on validation, {ece[2]} seen.

## Training it again

`python tools/train_demo.py` runs fixed step counts from fixed seeds on the CPU; every picture is drawn on the fly and
seen once. The run that made these weights took {minutes:.0f} minutes on two cores **of a machine that other jobs
shared**; different hardware or library versions give slightly different weights.

| stage | what is learnt | steps x pictures | minutes |
| --- | --- | --- | --- |
{stages}
Each picture of stages 1 and 2 carries several questions packed into one sequence. Pictures on backgrounds that are no
place ("in an unknown place") keep the model from reading the object off the place. The log of losses is in
`metrics.json`.
"""

_STAGES = (
    "vision encoder alone: which object is in which patch",
    "whole model: captions and verdicts",
    "whole model: captions, verdicts and answers",
)


def _cell(value: dict[str, float | None]) -> str:
    if not value["n"]:
        return "-"
    return f"{value['percent']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"


def model_card(figures: dict[str, Any]) -> str:
    """Render the card."""
    columns = [figures[split] for split in ("test", "validation", "training")]
    table = "".join(
        f"| {label} | " + " | ".join(_cell(column[key]) for column in columns) + " |\n"
        for label, key in _ROWS
    )
    stages = "".join(
        f"| {number} | {_STAGES[number]} | {stage['settings']['steps']} x {stage['settings']['mix']['pictures']}"
        f" | {stage['seconds'] / 60:.1f} |\n"
        for number, stage in enumerate(figures["stages"])
    )
    return (
        _HEAD.format(millions=figures["parameters"] / 1e6, count=figures["test"]["items"])
        + table
        + _TAIL.format(
            ece=[column["verdict_ece"] for column in columns],
            minutes=figures["training_seconds"] / 60,
            stages=stages,
        )
    )
