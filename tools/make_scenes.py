"""Draws the demo's eight scenes and examples/socket.png from the test split, by a rule that looks at no answer."""

from __future__ import annotations

import json
from pathlib import Path

from demo_world import Item, caption, items, render

ROOT = Path(__file__).parents[1]
POOL = 600
ORIGIN = (
    "tools/make_scenes.py: of the first 600 items of the demo world's test split, in their order, those whose "
    "main object was not taken yet, until there are four unsafe and four safe ones"
)


def choose(pool: list[Item], count: int) -> list[Item]:
    """`count` items with different main objects, half of them unsafe, unsafe and safe by turns."""
    chosen: list[Item] = []
    for item in pool:
        wanted = len(chosen) % 2 == 0
        if item.unsafe == wanted and item.objects[0] not in {other.objects[0] for other in chosen}:
            chosen.append(item)
        if len(chosen) == count:
            return chosen
    raise SystemExit(f"found {len(chosen)} of {count} scenes")


def main() -> None:
    pool = items("test", POOL)
    folder = ROOT / "models" / "demo" / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    scenes = []
    for number, item in enumerate(choose(pool, 8), start=1):
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
