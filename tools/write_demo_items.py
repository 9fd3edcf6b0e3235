"""Writes items of the demo world as a folder that the benchmark `demo-world` reads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import drawn_world
from drawn_world import Item
from safecode_trt.eval.benchmarks.demo_world import ANSWERS, DemoLine
from safecode_trt.records import to_dict


def write_items(folder: Path, split: str, count: int) -> None:
    """Writes the first `count` items of a split with their pictures; files of other splits stay."""
    pictures = folder / split
    pictures.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in drawn_world.items(split, count):
        name = f"{split}/{item.index}.png"
        drawn_world.render(item).save(folder / name)
        lines.append(json.dumps(to_dict(demo_line(item, name))) + "\n")
    (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    answers = json.dumps(sorted(drawn_world.possible_answers()), indent=1)
    (folder / ANSWERS).write_text(answers + "\n", encoding="utf-8")


def demo_line(item: Item, picture: str) -> DemoLine:
    return DemoLine(
        item=str(item.index),
        picture=picture,
        request=item.request,
        unsafe=item.unsafe,
        category="words mislead" if item.text_prior_wrong else "words agree",
        caption_request=drawn_world.CAPTION_QUESTION,
        caption=drawn_world.caption(item),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=drawn_world.SPLITS, default="test")
    parser.add_argument("--count", type=int, default=600)
    arguments = parser.parse_args()
    write_items(arguments.folder, arguments.split, arguments.count)


if __name__ == "__main__":
    main()
