"""Draws the demo's eight scenes and examples/socket.png from the test split: by a rule that looks at no answer."""

from __future__ import annotations

import json
from pathlib import Path

from drawn_world import Item, caption, items, render

ROOT = Path(__file__).parents[1]
POOL = 600
ORIGIN = (
    "tools/make_scenes.py: from the first 600 items of the demo world's test split, in their order, unsafe and safe "
    "by turns, no main object twice; in the first six the words suggest the wrong thing, in the last two the right"
)
# (unsafe, the words mislead)
WANTED = [(True, True), (False, True)] * 3 + [(True, False), (False, False)]


def choose(pool: list[Item]) -> list[Item]:
    """For every kind that is wanted, the first item of that kind with a main object that was not taken yet."""
    chosen: list[Item] = []
    for wanted in WANTED:
        taken = {item.objects[0] for item in chosen}
        chosen.append(
            next(
                item
                for item in pool
                if (item.unsafe, item.text_prior_wrong) == wanted and item.objects[0] not in taken
            )
        )
    return chosen


def main() -> None:
    pool = items("test", POOL)
    folder = ROOT / "models" / "demo" / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    scenes = []
    for number, item in enumerate(choose(pool), start=1):
        name = f"{number}-{item.objects[0].replace(' ', '-')}.png"
        render(item).save(folder / name, optimize=True)
        scenes.append(
            {"picture": name, "request": item.request, "unsafe": item.unsafe, "caption": caption(item)}
        )
    document = json.dumps({"origin": ORIGIN, "scenes": scenes}, indent=2)
    (folder / "scenes.json").write_text(document + "\n", encoding="utf-8")
    socket = next(item for item in pool if item.objects == ("socket",))
    (ROOT / "examples").mkdir(exist_ok=True)
    render(socket).save(ROOT / "examples" / "socket.png", optimize=True)


if __name__ == "__main__":
    main()
