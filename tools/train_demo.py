"""Train the demo model from nothing: three stages on drawn scenes, then the checkpoint folder with its figures."""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

from demo_batches import Mix, PatchBatch, TextBatch, patch_batch, text_batch
from demo_card import model_card
from demo_checkpoint import build_model, build_tokenizer, write_checkpoint
from demo_measure import Reader, embed, image_features, measure
from drawn_world import OBJECTS, PLACES, items

logger = logging.getLogger("train_demo")

# Muon's rate relative to AdamW's; 2 to 4 was the best of what was tried in stage 0.
MUON_PACE = 3.0
LOG_EVERY = 50
# A processor without bfloat16 emulates it, which is slower by far than float32.
HAS_BFLOAT16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=HAS_BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's schedule: cosine from `rate` to `rate * floor` after a warm-up; vision learns `vision` as fast."""

    steps: int
    rate: float
    floor: float
    warmup: int
    vision: float
    mix: Mix


STAGES: tuple[Stage, ...] = (
    Stage(
        steps=2000, rate=1.5e-3, floor=0.05, warmup=100, vision=1.0, mix=Mix(pictures=64, verdicts=0, chats=0)
    ),
    Stage(
        steps=2000, rate=1.5e-3, floor=0.15, warmup=100, vision=0.4, mix=Mix(pictures=32, verdicts=4, chats=0)
    ),
    Stage(steps=600, rate=7e-4, floor=0.0, warmup=30, vision=0.4, mix=Mix(pictures=32, verdicts=3, chats=3)),
)


class PatchHeads(nn.Module):
    """Stage 0's throw-away heads: the object in each patch, and the place of the whole picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, len(OBJECTS) + 1)
        self.place = nn.Linear(width, len(PLACES))


def patch_loss(
    model: Idefics3ForConditionalGeneration, heads: PatchHeads, batch: PatchBatch
) -> tuple[torch.Tensor, dict[str, float]]:
    with autocast():
        hidden = model.model.vision_model(pixel_values=torch.from_numpy(batch.pixels)).last_hidden_state
        patch_logits, place_logits = heads.patch(hidden), heads.place(hidden.mean(1))
    labels, places = torch.from_numpy(batch.patches), torch.from_numpy(batch.places)
    loss = nn.functional.cross_entropy(
        patch_logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100
    )
    place_loss = nn.functional.cross_entropy(place_logits.float(), places, ignore_index=-100)
    shown = labels > 0
    right = (patch_logits.argmax(-1) == labels)[shown].float().mean()
    return loss + 0.2 * place_loss, {"patch": right.item(), "place_loss": place_loss.item()}


def text_loss(
    model: Idefics3ForConditionalGeneration, batch: TextBatch
) -> tuple[torch.Tensor, dict[str, float]]:
    tokens, segments = torch.from_numpy(batch.tokens), torch.from_numpy(batch.segments)
    weights = torch.from_numpy(batch.weights)[:, 1:]
    width = tokens.shape[1]
    same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
    visible = same & torch.ones(width, width, dtype=torch.bool).tril()
    dtype = torch.bfloat16 if HAS_BFLOAT16 else torch.float32
    hidden_bias = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, -1e9)[:, None]
    with autocast():
        inputs = embed(model, tokens, image_features(model, torch.from_numpy(batch.pixels)))
        hidden = model.model.text_model(
            inputs_embeds=inputs,
            attention_mask=hidden_bias,
            position_ids=torch.from_numpy(batch.positions),
            use_cache=False,
        ).last_hidden_state
        chosen = weights > 0
        logits = model.lm_head(hidden[:, :-1][chosen])
    weight, target = weights[chosen], tokens[:, 1:][chosen]
    losses = nn.functional.cross_entropy(logits.float(), target, reduction="none")
    decisive = weight > 1
    right = (logits.argmax(-1) == target).float()
    return (losses * weight).sum() / weight.sum(), {
        "decisive_loss": losses[decisive].mean().item(),
        "decisive": right[decisive].mean().item(),
        "rest_loss": losses[~decisive].mean().item(),
    }


def make_optimizers(model: nn.Module, heads: nn.Module | None, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest; stage 0 (with heads) trains vision only."""
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in [*model.named_parameters(), *(heads.named_parameters() if heads else ())]:
        if heads is not None and (
            name.startswith("model.text_model") or "connector" in name or "lm_head" in name
        ):
            continue
        is_matrix = parameter.ndim == 2 and ".layers." in name
        pace = (stage.vision if "vision_model" in name else 1.0) * (MUON_PACE if is_matrix else 1.0)
        groups.setdefault((is_matrix, pace, 0.05 if parameter.ndim > 1 else 0.0), []).append(parameter)
    options: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for (is_matrix, pace, decay), parameters in groups.items():
        options[is_matrix].append(
            {"params": parameters, "lr": stage.rate, "pace": pace, "weight_decay": decay}
        )
    return [
        torch.optim.Muon(options[True], momentum=0.95, ns_steps=4, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(options[False], betas=(0.9, 0.98), fused=True),
    ]


def rate_at(stage: Stage, step: int) -> float:
    if step < stage.warmup:
        return stage.rate * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.rate * (stage.floor + (1 - stage.floor) * 0.5 * (1 + math.cos(math.pi * done)))


def ahead(make: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Draw batches in another process, a few ahead; which process draws them changes nothing in them."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        queue = [pool.apply_async(make, (number,)) for number in range(min(3, count))]
        for number in range(count):
            yield queue.pop(0).get()
            if number + 3 < count:
                queue.append(pool.apply_async(make, (number + 3,)))


def run_stage(
    number: int, stage: Stage, model: Idefics3ForConditionalGeneration, folder: Path
) -> dict[str, Any]:
    """Train one stage; returns its log for the figures file."""
    torch.manual_seed(number)
    heads = PatchHeads(model.config.vision_config.hidden_size) if number == 0 else None
    optimizers = make_optimizers(model, heads, stage)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    make: Callable[[int], Any] = (
        partial(patch_batch, pictures=stage.mix.pictures)
        if number == 0
        else partial(text_batch, number, mix=stage.mix, folder=folder)
    )
    model.train()
    curve, sums, start = [], dict[str, float](), time.perf_counter()
    for step, batch in enumerate(ahead(make, stage.steps)):
        for group in groups:
            group["lr"] = rate_at(stage, step) * group["pace"]
        loss, parts = patch_loss(model, heads, batch) if heads else text_loss(model, batch)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for name, value in {"loss": loss.item(), **parts}.items():
            sums[name] = sums.get(name, 0.0) + value
        if (step + 1) % LOG_EVERY == 0 or step + 1 == stage.steps:
            length = (step % LOG_EVERY) + 1
            point = {name: round(value / length, 4) for name, value in sums.items()}
            curve.append({"step": step + 1, "seconds": round(time.perf_counter() - start, 1), **point})
            logger.info("stage %d %s", number, curve[-1])
            sums = {}
    return {"settings": asdict(stage), "seconds": round(time.perf_counter() - start, 1), "curve": curve}


def train(work: Path, first: int, stages: tuple[Stage, ...], check: int) -> None:
    """Run the stages from `first` on, keeping the weights and the log after each in the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer: PreTrainedTokenizerFast = build_tokenizer()
    tokenizer.save_pretrained(work / "tokenizer")
    model = build_model(tokenizer, seed=20)
    if first > 0:
        model.load_state_dict(torch.load(work / f"stage{first - 1}.pt", weights_only=True))
    for number in range(first, len(stages)):
        log = run_stage(number, stages[number], model, work / "tokenizer")
        torch.save(model.state_dict(), work / f"stage{number}.pt")
        if number > 0:
            log["validation"] = measure(
                Reader(model, tokenizer, items("validation", check)), chat=number == 2
            )
            logger.info("stage %d validation %s", number, json.dumps(log["validation"]))
        (work / f"stage{number}.json").write_text(json.dumps(log), encoding="utf-8")


def finish(work: Path, folder: Path, count: int) -> None:
    """Write the checkpoint, read it back in half precision, and measure that."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=20)
    model.load_state_dict(torch.load(work / "stage2.pt", weights_only=True))
    write_checkpoint(folder, model, tokenizer)
    model = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    stages = [json.loads((work / f"stage{number}.json").read_text(encoding="utf-8")) for number in range(3)]
    readers = {
        split: Reader(model, tokenizer, items(split, count)) for split in ("training", "validation", "test")
    }
    figures: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": round(sum(stage["seconds"] for stage in stages), 1),
        **{split: measure(reader) for split, reader in readers.items()},
        "stages": stages,
    }
    (folder / "metrics.json").write_text(
        json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    (folder / "README.md").write_text(model_card(figures), encoding="utf-8")
    for split in readers:
        logger.info("%s %s", split, json.dumps(figures[split]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "models" / "demo")
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo"), help="weights and logs between stages"
    )
    parser.add_argument(
        "--from-stage", type=int, choices=(0, 1, 2, 3), default=0, help="3: only measure and write"
    )
    parser.add_argument("--check", type=int, default=300, help="validation items after each stage")
    parser.add_argument("--count", type=int, default=1000, help="items per split in the final figures")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    train(arguments.work, arguments.from_stage, STAGES, arguments.check)
    finish(arguments.work, arguments.out, arguments.count)


if __name__ == "__main__":
    main()
