"""The benchmark of a bundle on this machine.

Everything is measured in interleaved rounds (`timing.py`); what is run is in `workload.py`, and what comes out in
`bench_result.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from safecode_trt.bench.bench_result import BenchResult, BundleFacts, Overhead, Ratio, Setup, Share
from safecode_trt.bench.meter import PARTS
from safecode_trt.bench.timing import Case, Rounds, Spread, interleaved
from safecode_trt.bench.workload import MAX_ROWS, Workload
from safecode_trt.config import Backend, RuntimeConfig
from safecode_trt.engine import Engine
from safecode_trt.errors import ConfigError
from safecode_trt.machine import this_machine
from safecode_trt.policy.base import JUDGE
from safecode_trt.progress import Note, Progress, no_progress

__all__ = ["REQUEST", "TOKENS", "bench_bundle"]

REQUEST = "can i pour water on it?"
TOKENS = (16, 64, 128)
OPENINGS = 3


def bench_bundle(
    path: str | Path,
    *,
    runtime: RuntimeConfig | None = None,
    repeats: int = 9,
    tokens: Sequence[int] = TOKENS,
    request: str = REQUEST,
    progress: Progress = no_progress,
    note: Note | None = None,
) -> BenchResult:
    """Measures a bundle; `tokens` are the lengths of the replies. Every case runs once more, to warm up.

    `note` is as in `Engine.open`.

    Raises:
        ConfigError: a reply of that length does not fit into the bundle's context.
        BundleError: the folder is no sound bundle.
        BackendError: the backend is not installed, or failed.
    """
    if repeats < 1:
        raise ConfigError(f"must be at least 1, got {repeats}", field="repeats")
    if not tokens or min(tokens) < 1:
        raise ConfigError(f"must be one or more lengths of at least 1, got {tokens}", field="tokens")
    runtime = _settled(path, runtime or RuntimeConfig(), note)
    opened = _time_opening(Path(path), runtime, min(repeats, OPENINGS), progress)
    with Engine.open(path, config=runtime) as engine:
        work = Workload(engine, request)
        room = engine.model.capacity - work.longest_prompt()
        if max(tokens) > room:
            raise ConfigError(
                f"must be at most {room}: the bundle holds {engine.model.capacity} positions with the prompt; "
                f"got {max(tokens)}",
                field="tokens",
                fix="pass fewer, or export with a larger --context-length",
            )
        rounds = interleaved(_cases(work, tokens), repeats, step="measuring", progress=progress)
        return _result(engine, work, runtime, repeats, tuple(tokens), rounds, opened)


def _settled(path: str | Path, runtime: RuntimeConfig, note: Note | None) -> RuntimeConfig:
    """With the backend that `auto` takes, so that no opening that is timed has to find it again."""
    if runtime.backend != "auto":
        return runtime
    with Engine.open(path, config=runtime, note=note) as engine:
        return replace(runtime, backend=cast(Backend, engine.model.backend))


def _time_opening(path: Path, runtime: RuntimeConfig, repeats: int, progress: Progress) -> Spread:
    def run() -> None:
        Engine.open(path, config=runtime).close()

    rounds = interleaved({"open": Case(run)}, repeats, step="opening", progress=progress)
    return rounds.spread("open")


def _cases(work: Workload, tokens: Sequence[int]) -> dict[str, Case]:
    cases = {_rows("step", rows): work.steps(rows) for rows in range(1, MAX_ROWS + 1)}
    cases |= {_rows("prefill", rows): work.prefill(rows) for rows in range(1, MAX_ROWS + 1)}
    cases |= {_pictures(count): work.vision(count) for count in (1, 2) if work.pictures}
    cases |= {_reply(variant, n): work.reply(variant, n) for n in tokens for variant in work.variants}
    return cases


def _rows(what: str, rows: int) -> str:
    return f"{what}, {rows} row{'s' if rows > 1 else ''}"


def _pictures(count: int) -> str:
    return f"vision, {count} picture{'s' if count > 1 else ''}"


def _reply(variant: str, tokens: int) -> str:
    how = "plain" if variant == "plain" else f"SafeCoDe {variant}"
    return f"reply of {tokens} tokens, {how}"


def _result(
    engine: Engine,
    work: Workload,
    runtime: RuntimeConfig,
    repeats: int,
    tokens: tuple[int, ...],
    rounds: Rounds,
    opened: Spread,
) -> BenchResult:
    manifest, prompts, longest = engine.bundle.manifest, work.prompts, max(tokens)
    judge = prompts[work.variants[1]].tokens.get(JUDGE)
    return BenchResult(
        machine=this_machine(runtime.threads, engine.model.backend),
        bundle=BundleFacts(
            path=str(engine.bundle.path),
            model_type=manifest.model_type,
            precision=manifest.precision,
            attention=manifest.attention,
            geometry=manifest.geometry,
        ),
        setup=Setup(
            repeats=repeats,
            tokens=tokens,
            prompt_tokens=len(prompts["plain"].tokens["request"]),
            judge_tokens=0 if judge is None else len(judge),
            pictures=sum(len(layout.views) for layout in prompts["plain"].layouts),
            visible_keys=work.visible_keys,
            capacity=work.capacity,
        ),
        ratios=_ratios(rounds, work, tokens),
        milliseconds={"open": opened.scaled(1e3)} | _milliseconds(rounds, work, longest),
        shares=_shares(rounds, work, longest),
        overhead=_overhead(rounds, work, longest),
    )


def _ratios(rounds: Rounds, work: Workload, tokens: Sequence[int]) -> tuple[Ratio, ...]:
    pairs = [
        (_rows(what, rows), _rows(what, 1)) for what in ("step", "prefill") for rows in range(2, MAX_ROWS + 1)
    ]
    pairs += [(_pictures(2), _pictures(1))] if work.pictures else []
    pairs += [(_reply(variant, n), _reply("plain", n)) for variant in work.variants[1:] for n in tokens]
    return tuple(Ratio(name=name, base=base, times=rounds.ratio(name, base)) for name, base in pairs)


def _milliseconds(rounds: Rounds, work: Workload, tokens: int) -> dict[str, Spread]:
    found = {name: rounds.spread(name) for name in rounds.seconds if "/" not in name}
    found |= {
        _reply(variant, tokens).replace("reply", "first token of a reply"): rounds.spread(
            f"{_reply(variant, tokens)}/first token"
        )
        for variant in work.variants
    }
    return {name: spread.scaled(1e3) for name, spread in found.items()}


def _shares(rounds: Rounds, work: Workload, tokens: int) -> tuple[Share, ...]:
    """The medians of the parts, of what they leave of the whole, and of the whole."""
    names = {part: f"/{part}" for part in (*PARTS, "rest")} | {"whole": ""}
    return tuple(
        Share(
            part=part,
            milliseconds={
                variant: rounds.spread(_reply(variant, tokens) + suffix).median * 1e3
                for variant in work.variants
            },
        )
        for part, suffix in names.items()
    )


def _overhead(rounds: Rounds, work: Workload, tokens: int) -> tuple[Overhead, ...]:
    found = []
    steered = work.variants[-1]
    rows = "1 row" if steered == "verdict" else "2 rows"
    for label, variant, step in (
        ("plain, 1 row", "plain", "step"),
        (f"steered, {rows}", steered, "steered step"),
        ("after steering, 1 row", steered, "step"),
    ):
        name = f"{_reply(variant, tokens)}/{step}"
        if name in rounds.seconds:
            step_ms, outside_ms, binding_ms = (
                rounds.spread(name + part).median * 1e3 for part in ("", " outside", " binding")
            )
            found.append(Overhead(step=label, step_ms=step_ms, outside_ms=outside_ms, binding_ms=binding_ms))
    return tuple(found)
