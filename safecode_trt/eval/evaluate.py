"""Runs an evaluation: asks every arm what it has not answered yet, and keeps each answer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safecode_trt.bundle import Bundle
from safecode_trt.errors import ConfigError, EvalError
from safecode_trt.eval.benchmarks import EvalItem
from safecode_trt.eval.results import Result, ResultLog, Shard, finished, merge_results
from safecode_trt.eval.runner import Runner, RunnerConfig, Task, asked_digest, bundle_digest
from safecode_trt.progress import Progress, no_progress

__all__ = ["Answers", "Workers", "answer_items", "choose_items", "gather"]

RESULTS = "results.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who answers: one session in this process, or `workers` Ray actors of the cluster at `address` or of a new one."""

    engine: Literal["local", "ray"] = "local"
    workers: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"must be at least 1, got {self.workers}", field="workers")
        if self.engine == "local":
            for name, asked in (("workers", self.workers > 1), ("address", self.address is not None)):
                if asked:
                    raise ConfigError("needs the engine ray, got local", field=name, fix="pass --engine ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All results of these arms and items, a line that had been cut, and other modes that the file has."""

    results: tuple[Result, ...]
    cut: str | None
    others: tuple[str, ...]


def choose_items(
    items: Sequence[EvalItem], *, limit: int | None, shard: Shard | None
) -> tuple[EvalItem, ...]:
    """The first `limit` items, and of these the shard's.

    Raises:
        EvalError: nothing is left.
    """
    chosen = tuple(item for item in items[:limit] if shard is None or shard.holds(item.key))
    if not chosen:
        raise EvalError(
            f"no item is left of {len(items)}", fix="pass a larger --limit, or a --shard of fewer"
        )
    return chosen


def gather(parts: Sequence[Path], folder: Path) -> None:
    """Joins the results of other machines with those that are in the folder.

    Raises:
        EvalError: a file cannot be read, or two contradict each other.
    """
    own = folder / RESULTS
    merge_results([*parts, *([own] if own.exists() else [])], own)


def answer_items(
    config: RunnerConfig,
    items: Sequence[EvalItem],
    folder: Path,
    *,
    workers: Workers,
    progress: Progress = no_progress,
    started: Callable[[int, int], None] = lambda earlier, total: None,
) -> Answers:
    """Answers what `folder`/results.jsonl lacks. `started` hears how many answers are there, and how many shall be.

    Raises:
        EvalError: the file cannot be read or written, has results of these modes from another run or backend, or an
            item has been changed since it was answered.
        SafeCodeError: the machine has failed; what was answered before is kept.
    """
    digest = bundle_digest(Bundle.open(config.bundle, check_hashes=False).manifest)
    runs = {arm.name: config.run_of(arm, digest) for arm in config.arms}
    asked = {item.key: item for item in items}
    with ResultLog(folder / RESULTS) as log:
        earlier = log.earlier.lines
        done = {name: finished(earlier, mode=name, run=run) for name, run in runs.items()}
        tasks = [
            Task(item=item, arms=names)
            for item in items
            if (names := tuple(name for name in runs if item.key not in done[name]))
        ]
        wanted = [result for result in earlier if result.mode in runs and result.key in asked]
        _check_items(wanted, asked)
        left = sum(len(task.arms) for task in tasks)
        started(len(wanted), len(wanted) + left)
        backends = {result.mode: result.backend for result in earlier}
        for number, result in enumerate(_answers(config, tasks, workers), start=1):
            if (known := backends.setdefault(result.mode, result.backend)) != result.backend:
                raise EvalError(
                    f"the answers of mode {result.mode} are by the backend {known} so far, and by "
                    f"{result.backend} here",
                    fix="write to another --output, or choose the earlier --backend",
                )
            log.append(result)
            wanted.append(result)
            progress("answering", number, left)
    order = {name: number for number, name in enumerate(runs)}
    places = {item.key: number for number, item in enumerate(items)}
    wanted.sort(key=lambda result: (places[result.key], order[result.mode]))
    return Answers(
        results=tuple(wanted),
        cut=log.earlier.cut,
        others=tuple(sorted({result.mode for result in earlier} - runs.keys())),
    )


def _check_items(earlier: Sequence[Result], items: Mapping[str, EvalItem]) -> None:
    """Holds earlier answers against what the items ask now."""
    now = {key: asked_digest(items[key]) for key in {result.key for result in earlier}}
    changed = sorted({result.key for result in earlier if result.asked != now[result.key]})
    if changed:
        raise EvalError(
            f"{len(changed)} items have other words or another picture than when they were answered, the first is "
            f"{changed[0]}",
            fix="write to another --output",
        )


def _answers(config: RunnerConfig, tasks: Sequence[Task], workers: Workers) -> Iterator[Result]:
    if not tasks:
        return
    if workers.engine == "ray":
        from safecode_trt.eval.ray_actors import answer_on_ray

        yield from answer_on_ray(config, tasks, workers=workers.workers, address=workers.address)
        return
    with Runner(config) as runner:
        for task in tasks:
            yield from runner.answer(task)
