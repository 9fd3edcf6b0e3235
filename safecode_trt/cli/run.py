"""safecode-trt run: one request, one reply, streamed as it is made."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import (
    FOLDER,
    PolicyChoice,
    as_json,
    build_policy,
    engine_options,
    explain_option,
    judge_options,
    policy_options,
    read_prompt,
    sampling_options,
)
from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.errors import ConfigError

if TYPE_CHECKING:
    from safecode_trt.runtime import Reply
    from safecode_trt.runtime.judges import JudgeConfig

__all__ = ["command"]


@click.command("run", short_help="Ask one question.")
@click.argument("bundle", type=FOLDER)
@click.argument("prompt")
@click.option("--image", type=FOLDER, help="The picture that the request is about.")
@policy_options
@judge_options
@explain_option
@sampling_options
@engine_options
@click.option("--trace", is_flag=True, help="Show what each steered step did to the leading tokens.")
@click.option("--audit", type=FOLDER, metavar="FILE", help="Append the reply to this JSON-lines log.")
@as_json
def command(
    bundle: Path,
    prompt: str,
    image: Path | None,
    choice: PolicyChoice,
    judge: JudgeConfig,
    explain: bool,
    sampling: SamplingParams,
    runtime: RuntimeConfig,
    trace: bool,
    audit: Path | None,
    as_json: bool,
) -> None:
    """Ask BUNDLE one question; PROMPT - reads it from stdin.

    \b
    Example:
      safecode-trt run build/demo-bundle --image examples/socket.png "can i pour water on it?"
      echo "what is this?" | safecode-trt run build/demo-bundle --image photo.png --json -
    """
    from safecode_trt.runtime import Engine
    from safecode_trt.runtime.audit import AuditLog
    from safecode_trt.runtime.judges import make_judge

    prompt, who = read_prompt(prompt), make_judge(judge)
    log = AuditLog(audit) if audit else None
    with Engine.open(bundle, config=runtime) as engine:
        policy = build_policy(engine, choice)
        if who is not None and not policy.plan.judged:
            raise ConfigError("this policy acts on no verdict; leave --judge out, or choose another --mode")
        stream = engine.stream(
            prompt, image=image, policy=policy, sampling=sampling, judge=who, explain=explain
        )
        reply = None
        for chunk in stream:
            if not as_json:
                click.echo(console.printable(chunk.text), nl=False)
            reply = chunk.reply
        if reply is None:
            raise RuntimeError("the stream ended without a reply")
        if not as_json:
            click.echo()
            console.note(summary(reply))
            if trace:
                from safecode_trt.cli.trace import print_trace

                print_trace(engine.prompts.tokenizer, reply)
    digest = hashlib.sha256(image.read_bytes()).hexdigest() if image else None
    if as_json:
        request = {"bundle": str(bundle), "prompt": prompt, "image_sha256": digest, "mode": choice.mode}
        answer = reply.to_dict()
        if not trace:
            del answer["trace"]
        console.emit_json({**request, **answer})
    if log:
        with closing(log):
            log.write(reply, mode=choice.mode, prompt=prompt, image_sha256=digest)


def summary(reply: Reply) -> str:
    """How the reply came about, in one line."""
    parts = []
    if reply.verdict:
        word = "unsafe" if reply.verdict.unsafe else "safe"
        if reply.verdict.abstained:
            word = f"uncertain, perhaps {word}"
        by = "" if reply.verdict.source == "self" else f", says {reply.verdict.source}"
        parts.append(f"{word} (p_unsafe {reply.verdict.p_unsafe:.2f}{by})")
    if reply.fallback_reason:
        parts.append(f"fallback: {reply.fallback_reason}")
    elif reply.finish_reason == "settled":
        parts.append("answered by the policy, nothing decoded")
    elif reply.finish_reason != "stop":
        parts.append(f"ended by {reply.finish_reason.replace('_', ' ')}")
    times = reply.timings
    if reply.finish_reason == "settled":
        parts.append(f"after {times.total_s * 1e3:.0f} ms")
    else:
        parts.append(f"{len(reply.token_ids)} tokens")
        parts.append(
            f"first after {times.first_token_s * 1e3:.0f} ms, then {times.per_token_s * 1e3:.1f} ms each"
        )
    return console.printable(", ".join(parts))
