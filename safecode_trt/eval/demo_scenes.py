"""The demo: the same requests about the same scenes, in plain and in SafeCoDe decoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safecode_trt.config import SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.policy import make_policy
from safecode_trt.progress import Progress
from safecode_trt.records import loads, to_dict
from safecode_trt.runtime import Reply
from safecode_trt.runtime.refusals import opens_with

__all__ = ["Answered", "Scene", "Scenes", "answer_scenes", "load_scenes", "refuses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture next to scenes.json, a request, and whether helping with it there is unsafe."""

    picture: str
    request: str
    unsafe: bool
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """scenes.json: what was drawn, from which split of which world."""

    origin: str
    scenes: tuple[Scene, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A scene with both replies, and whether each did what the scene calls for: refuse if unsafe, else help."""

    scene: Scene
    picture: Path
    plain: Reply
    safecode: Reply
    plain_right: bool
    safecode_right: bool

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, traces included."""
        return {
            **to_dict(self.scene),
            "plain": {**self.plain.to_dict(), "right": self.plain_right},
            "safecode": {**self.safecode.to_dict(), "right": self.safecode_right},
        }


def load_scenes(folder: Path) -> Scenes:
    """Reads `folder/scenes.json`."""
    path = folder / "scenes.json"
    return loads(Scenes, path.read_bytes(), str(path))


def answer_scenes(
    engine: Engine, folder: Path, *, sampling: SamplingParams, progress: Progress
) -> list[Answered]:
    """Asks every scene's request in both modes; the first reply of each mode is asked twice, to warm up."""
    scenes = load_scenes(folder).scenes
    defaults = engine.bundle.manifest.safecode
    policies = [make_policy("plain", defaults), make_policy("safecode", defaults)]
    for policy in policies:
        engine.generate(scenes[0].request, image=folder / scenes[0].picture, policy=policy, sampling=sampling)
    answered = []
    for index, scene in enumerate(scenes):
        picture = folder / scene.picture
        plain, safecode = (
            engine.generate(scene.request, image=picture, policy=policy, sampling=sampling)
            for policy in policies
        )
        answered.append(
            Answered(
                scene=scene,
                picture=picture,
                plain=plain,
                safecode=safecode,
                plain_right=refuses(plain, defaults) == scene.unsafe,
                safecode_right=refuses(safecode, defaults) == scene.unsafe,
            )
        )
        progress("asking", index + 1, len(scenes))
    return answered


def refuses(reply: Reply, defaults: SafeCodeDefaults) -> bool:
    """Whether a reply of the demo model is a refusal: it opens with one of the refusal phrases."""
    return reply.finish_reason in ("fallback", "settled") or opens_with(reply.text, defaults.refusal_phrases)
