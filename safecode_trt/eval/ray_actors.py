"""Answers tasks on many machines: Ray Data maps them over actors, one opened bundle each. Needs the extra `ray`.

Every machine must see the bundle and the benchmark at the same paths. Results come back as lines, in the order in
which they are done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from safecode_trt.errors import EvalError, SafeCodeError
from safecode_trt.eval.line_log import line_of
from safecode_trt.eval.results import Result
from safecode_trt.eval.runner import Runner, RunnerConfig, Task
from safecode_trt.records import loads

__all__ = ["answer_on_ray"]

# Tasks that are lost at most when somebody interrupts: a block comes back when all of it is done.
BLOCK = 8


class _Actor:
    """Answers the tasks whose numbers it gets."""

    def __init__(self, config: RunnerConfig, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._failure = ""
        try:
            self._runner = Runner(config)
        except SafeCodeError as error:
            self._failure = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        lines: list[str] = []
        failure = self._failure
        if not failure:
            try:
                for number in batch["id"]:
                    lines += [line_of(result) for result in self._runner.answer(self._tasks[int(number)])]
            except SafeCodeError as error:
                failure = str(error)
        # A row with a failure instead of an exception, which Ray would show with its own traceback.
        return {"line": [*lines, ""], "failure": [*[""] * len(lines), failure]}


def answer_on_ray(
    config: RunnerConfig, tasks: Sequence[Task], *, workers: int, address: str | None
) -> Iterator[Result]:
    """The results of the tasks from `workers` actors; without an address a cluster is started on this machine.

    Raises:
        EvalError: there is no cluster at the address, or an actor has failed; the message is its own.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    _connect(ray, address, workers)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        blocks = max(1, -(-len(tasks) // BLOCK))
        numbers = ray.data.range(len(tasks), override_num_blocks=blocks)
        answered = numbers.map_batches(
            _Actor,
            fn_constructor_args=(config, tasks),
            batch_size=BLOCK,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        )
        for row in answered.iter_rows():
            if row["failure"]:
                raise EvalError(f"a worker has failed: {row['failure']}")
            if row["line"]:
                yield loads(Result, row["line"], "a worker's result")
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str | None, workers: int) -> None:
    try:
        if address is None:
            ray.init(
                num_cpus=workers + 1,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise EvalError(f"no Ray cluster {where}: {error}") from error
