"""What the second turn of a clip costs when it continues the first on the same engine, against two requests apart.

    python benchmarks/two_turns.py [--clips 24] [--in-flight 8] [--frames 64] [--work DIR]

A Qwen2-VL of random weights, made on the spot, describes clips of noise on vLLM's CPU build. Lines:

- continued: the describer as it is; memory for all clips' KV at once;
- continued, tight: KV memory for 1.5 times the clips in flight;
- unbounded: the same memory, but all clips are sent at once and second turns have no priority: what admission and
  priority are for (that the encoder still runs once is due to vLLM's cache of what it made, which on a CPU we let be
  large; on a GPU it holds a clip or two);
- apart: each turn is a request of its own, with the caption as text; no prefix cache, frames prepared for each.

Columns: turn-2 prompt tokens served from the cache, of all and of those in full blocks of what both turns share;
videos through the vision encoder and through the processor, for each clip; prompt tokens computed for each clip;
seconds, and CPU seconds of the engine and of this process, for all clips. The model is small: more of the time than in
earnest goes into answers, token by token, which cost the same in each line.

Needs a checkout (it uses the tests' tiny checkpoint) and vLLM.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.models.protocols import ClipFrames
from pipeline.models.spec import ModelSpec
from pipeline.models.two_turns import Reply, TurnLimits, converse
from pipeline.models.vllm import conversation as vllm_conversation
from pipeline.models.vllm import describer as vllm_describer
from pipeline.models.vllm.admission import Load
from pipeline.models.vllm.conversation import FIRST_TURN, SECOND_TURN, ClipConversation, video_tokens
from pipeline.models.vllm.describer import VllmDescriber
from pipeline.models.vllm.options import engine_args
from tests.models import encoder_counter, tiny_qwen2vl

HEIGHT, WIDTH = 168, 224
SIZE = tiny_qwen2vl.Size(width=384, layers=4)
HEAD = ("", "cached", "of full blocks", "encoder/clip", "processor/clip", "computed/clip", "seconds", "CPU s")


@dataclass
class Bench:
    """What all lines have in common."""

    weights: Path
    clips: list[ClipFrames]
    in_flight: int

    def load(self, **changed: Any) -> VllmDescriber:
        """The describer, its engine's arguments changed."""
        options = {
            **tiny_qwen2vl.OPTIONS,
            "max_frames": len(self.clips[0].frames),
            "max_num_seqs": self.in_flight,
            "qa_tokens": 512,
            "kv_cache_bytes": 1 << 30,
        }
        changed["worker_extension_cls"] = encoder_counter.EXTENSION
        vllm_describer.engine_args = lambda folder, options: engine_args(folder, options) | changed
        describer = vllm_describer.load(ModelSpec(family="vllm", name="tiny", path=str(self.weights), options=options))
        encoder_counter.start(describer.engine)
        return describer

    def tight_blocks(self, describer: VllmDescriber) -> int:
        """KV blocks for 1.5 times the clips in flight."""
        each = describer._load(self.clips[0]).kv_tokens // describer._block
        return int(1.5 * self.in_flight * each) + 1


class Apart(ClipConversation):
    """Each turn is a request that shares nothing with the other but the frames."""

    _said = ""

    async def caption(self, max_tokens: int) -> Reply:
        self._rename("first")
        reply = await super().caption(max_tokens)
        self._said = reply.text
        return reply

    async def pairs(self, max_tokens: int) -> Reply:
        self._rename("second")
        said = self._engine.tokenizer()(self._said, add_special_tokens=False)["input_ids"]
        self._before_second = self._script.first + said
        return await super().pairs(max_tokens)

    def _rename(self, turn: str) -> None:
        self._video = {**self._video, "multi_modal_uuids": {"video": [f"{self._clip_id} {turn}"]}}


def run(name: str, bench: Bench, describer: VllmDescriber, kind: type[ClipConversation]) -> dict[str, float]:
    """Describe all clips, print a line and end the engine."""
    talks = [kind(describer.engine, describer._script, describer._options, clip) for clip in bench.clips]
    limits = TurnLimits(caption_tokens=128, qa_tokens=512, retry_factor=2)

    async def one(talk: ClipConversation, clip: ClipFrames) -> None:
        async with describer._admission.admit(describer._load(clip)):
            await converse(talk, limits)

    async def everything() -> list[Any]:
        return await asyncio.gather(*map(one, talks, bench.clips), return_exceptions=True)

    before = describer.engine._llm.renderer.mm_processor_cache.make_stats()
    start, start_cpu = time.perf_counter(), _cpu_s(describer)
    ends = describer.engine.submit(everything()).result()
    seconds, cpu_s = time.perf_counter() - start, _cpu_s(describer) - start_cpu
    looks = describer.engine._llm.renderer.mm_processor_cache.make_stats()
    prepared = (looks.total - looks.hits) - (before.total - before.hits)
    row = {
        **_cached(talks, describer._block),
        "encoder": encoder_counter.encoded(describer.engine) / len(talks),
        "processor": prepared / len(talks),
        "computed": sum(len(a.prompt_token_ids) - a.cached_tokens for t in talks for _, a in t.answers) / len(talks),
        "seconds": seconds,
        "cpu_s": cpu_s,
        "failed": sum(end is not None for end in ends),
    }
    describer.close()
    print(
        f"{name:<20} {row['cached']:>7.1%} {row['of_blocks']:>14.1%} {row['encoder']:>12.2f} {row['processor']:>14.2f} "
        f"{row['computed']:>13.0f} {seconds:>8.2f} {cpu_s:>8.2f}   rejected: {row['failed']}",
        flush=True,
    )
    return row


def _cpu_s(describer: VllmDescriber) -> float:
    """CPU seconds so far of this process and of the engine's."""
    ticks = 0
    for pid in (os.getpid(), *describer.engine.pids()):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _cached(talks: list[ClipConversation], block: int) -> dict[str, float]:
    """Of the second turns' prompt tokens, the share served from the cache; and of those that could have been. A second
    turn that was asked again does not count: it could have all of its prompt."""
    prompt = cached = could = 0
    for talk in talks:
        names = [name for name, _ in talk.answers]
        if "qa" in names:
            at = names.index("qa")
            (_, first), (_, second) = talk.answers[at - 1], talk.answers[at]
            prompt += len(second.prompt_token_ids)
            cached += second.cached_tokens
            could += (len(first.prompt_token_ids) + len(first.token_ids) - 1) // block * block
    return {"cached": cached / prompt, "of_blocks": cached / could}


def main() -> None:
    parser = argparse.ArgumentParser(description="Second turns that continue the first, against requests apart.")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--in-flight", type=int, default=8, help="clips in flight at once")
    parser.add_argument("--frames", type=int, default=64, help=f"of a clip, each {WIDTH} x {HEIGHT}")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint; a temporary one otherwise")
    args = parser.parse_args()
    os.environ |= tiny_qwen2vl.ENVIRONMENT
    noise = np.random.default_rng(0)
    shape = (args.frames, HEIGHT, WIDTH, 3)
    clips = [
        ClipFrames(f"clip {n}", noise.integers(0, 256, shape, np.uint8), np.arange(args.frames) / 2.0, args.frames / 2)
        for n in range(args.clips)
    ]
    with tempfile.TemporaryDirectory() as made:
        bench = Bench(tiny_qwen2vl.build(args.work or Path(made), size=SIZE), clips, args.in_flight)
        compare(bench)


def compare(bench: Bench) -> None:
    """All lines, and the last one against the first."""
    describer = bench.load()
    blocks = bench.tight_blocks(describer)
    print(
        f"{len(bench.clips)} clips of {video_tokens(*bench.clips[0].frames.shape[:3])} video tokens, "
        f"{describer._script.tokens} of prompts; {bench.in_flight} in flight; blocks of {describer._block}; "
        f"tight: {blocks} blocks"
    )
    print(
        f"{HEAD[0]:<20} {HEAD[1]:>7} {HEAD[2]:>14} {HEAD[3]:>12} {HEAD[4]:>14} {HEAD[5]:>13} {HEAD[6]:>8} {HEAD[7]:>8}"
    )
    ours = run("continued", bench, describer, ClipConversation)
    run("continued, tight", bench, bench.load(num_gpu_blocks_override=blocks), ClipConversation)

    crowded = replace(bench, in_flight=len(bench.clips)).load(num_gpu_blocks_override=blocks)
    crowded._admission.limit = Load(1 << 40, 1 << 60, 1 << 20)
    vllm_conversation.SECOND_TURN = FIRST_TURN
    run("unbounded", bench, crowded, ClipConversation)
    vllm_conversation.SECOND_TURN = SECOND_TURN

    apart = run("apart", bench, bench.load(enable_prefix_caching=False), Apart)
    print(f"apart / continued: tokens computed {apart['computed'] / ours['computed']:.2f}, ", end="")
    print(f"seconds {apart['seconds'] / ours['seconds']:.2f}, CPU seconds {apart['cpu_s'] / ours['cpu_s']:.2f}")


if __name__ == "__main__":
    main()
