"""Asks a bundle the items of a benchmark, in every arm alike. Knows no file of results and no judge of answers."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.engine_entry import ENGINES
from safecode_trt.errors import BackendError, EvalError, PictureError, PromptError, SteeringError
from safecode_trt.eval.arms import Arm
from safecode_trt.eval.benchmarks import EvalItem
from safecode_trt.eval.results import FAILED, Result
from safecode_trt.manifest import Manifest
from safecode_trt.policy.base import Policy
from safecode_trt.records import to_dict
from safecode_trt.runtime.judges import Judge, JudgeConfig, Keyed, make_judge, verdict_parts
from safecode_trt.runtime.prompt import Message

__all__ = ["Runner", "RunnerConfig", "Task", "asked_digest", "backend_name", "bundle_digest", "item_seed"]

# What an item may do wrong. Everything else is the machine's fault, and ends the run.
ITEM_FAULTS = (PictureError, PromptError, SteeringError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """How a bundle is asked: everything that two machines must have in common.

    `judge` gives the verdicts, unless an arm has another. `system` is the system text of every request, in every arm;
    "" for none. `sampling.seed` is what the items' own seeds are made of. `templates` names the words around requests.
    """

    bundle: Path
    arms: tuple[Arm, ...]
    sampling: SamplingParams
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    system: str = ""
    templates: str = ""

    def run_of(self, arm: Arm, bundle: str) -> str:
        """A digest of what an arm's answers depend on, for a bundle with this digest, wherever it lies.

        Which backend decodes, and what the items ask, is not in it: every result says that for itself.

        Raises:
            ConfigError: a judge's file cannot be read.
        """
        verdicts = verdict_parts(self.judge_of(arm))
        parts = [to_dict(arm), to_dict(self.sampling), verdicts, self.system, self.templates, bundle]
        return _digest(parts)[:16]

    @property
    def judge_name(self) -> str:
        """The judge of requests as it may be shown: the query of an address may hold a secret."""
        names = [re.sub(r"\?[^#]*", "", name) for name in self.judge.judges]
        return names[0] if len(names) == 1 else f"{self.judge.rule} of {', '.join(names)}"

    def judge_of(self, arm: Arm) -> JudgeConfig:
        """Who gives an arm's verdicts."""
        return self.judge if arm.judge is None else replace(self.judge, judges=(arm.judge,), threshold=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An item, and the names of the arms that have yet to answer it."""

    item: EvalItem
    arms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """An arm with its policy and judge made; no judge is the model itself, in a row of the reply."""

    policy: Policy
    judge: Judge | None
    run: str


class Runner:
    """An opened bundle that answers tasks. One session; not for several threads at once.

    Raises:
        BundleError: the folder is no sound bundle.
        BackendError: the backend is not installed or does not take the graphs.
    """

    def __init__(self, config: RunnerConfig) -> None:
        self._config = config
        self._engine = Engine.open(config.bundle, config=config.runtime)
        manifest = self._engine.bundle.manifest
        digest = bundle_digest(manifest)
        self._backend = backend_name(self._engine.model.backend, manifest)
        self._arms = {
            arm.name: _Ready(
                policy=arm.policy(manifest.safecode),
                judge=make_judge(config.judge_of(arm)),
                run=config.run_of(arm, digest),
            )
            for arm in config.arms
        }

    def answer(self, task: Task) -> Iterator[Result]:
        """The results of a task, one by one.

        Raises:
            EvalError: the picture is not on this machine.
            BackendError: the backend has failed, whatever the arm's fallback made of it.
        """
        asked = asked_digest(task.item)
        for name in task.arms:
            yield self._ask(task.item, name, asked)

    def _ask(self, item: EvalItem, name: str, asked: str) -> Result:
        arm = self._arms[name]
        made = functools.partial(
            Result,
            key=item.key,
            mode=name,
            run=arm.run,
            backend=self._backend,
            asked=asked,
            side=item.side,
            category=item.category,
        )
        try:
            reply = self._engine.generate(
                _messages(item, self._config.system),
                image=item.picture,
                policy=arm.policy,
                sampling=item_seed(self._config.sampling, item.key),
                judge=None if arm.judge is None else Keyed(arm.judge, item.key),
            )
        except ITEM_FAULTS as error:
            return made(
                answer="",
                finish_reason=FAILED,
                tokens=0,
                seconds=0.0,
                failure=f"{type(error).__name__}: {error}",
            )
        if reply.backend_failed:  # its refusal says nothing of the arm
            raise BackendError(
                f"{item.key}: {reply.fallback_reason}",
                fix="run the same command again, which goes on from here",
            )
        verdict, times = reply.verdict, reply.timings
        return made(
            answer=reply.text,
            finish_reason=reply.finish_reason,
            tokens=len(reply.token_ids),
            seconds=times.total_s,
            first_token_seconds=times.first_token_s or None,
            p_unsafe=None if verdict is None else verdict.p_unsafe,
            verdict_unsafe=None if verdict is None else verdict.unsafe,
            fallback_reason=reply.fallback_reason,
        )

    def close(self) -> None:
        """Releases the backend."""
        self._engine.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bundle_digest(manifest: Manifest) -> str:
    """A digest of what a bundle's answers depend on: its files and settings, but not which engines were built."""
    data: dict[str, Any] = to_dict(manifest)
    data["files"] = {name: entry for name, entry in data["files"].items() if not name.startswith(ENGINES)}
    for name in ("engines", "parity", "tools"):
        del data[name]
    return _digest(data)


def backend_name(session: str, manifest: Manifest) -> str:
    """What decodes: the session's name, and for TensorRT a digest of the bundle's engines, which others may replace."""
    if session != "trt":
        return session
    return f"{session} {_digest(to_dict(manifest.engines))[:8]}"


def asked_digest(item: EvalItem) -> str:
    """A digest of what an item asks: its words, and the bytes of its picture.

    Raises:
        EvalError: the picture cannot be read.
    """
    digest = hashlib.sha256(item.prompt.encode("utf-8", "surrogatepass"))
    if item.picture is not None:
        try:
            digest.update(b"\0" + hashlib.sha256(item.picture.read_bytes()).digest())
        except OSError as error:
            raise EvalError(
                f"{item.picture} cannot be read ({error.strerror}); every machine must see the benchmark "
                "at the same path"
            ) from error
    return digest.hexdigest()[:16]


def item_seed(sampling: SamplingParams, key: str) -> SamplingParams:
    """The sampling with the item's own seed, the same in every arm, in every order and on every machine."""
    digest = hashlib.sha256(f"{sampling.seed}/{key}".encode()).digest()
    return replace(sampling, seed=int.from_bytes(digest[:8], "big") >> 1)


def _messages(item: EvalItem, system: str) -> Sequence[Message]:
    shown = Message(role="user", text=item.prompt, images=0 if item.picture is None else 1)
    return [Message(role="system", text=system), shown] if system else [shown]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
