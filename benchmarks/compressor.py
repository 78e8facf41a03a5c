"""The compressor against the plain way to write it: time and memory, same inputs, same weights, one run.

    python benchmarks/compressor.py [--batches 1 4 8] [--threads 1] [--rounds 3] [--device cuda]

Inputs have the full size, 32 x 27 x 27 tokens of 1,152 channels a sample, values and keys; the preset is `release`.
The plain way is `tests/compressor/naive.py`, which does what the authors' code does. Outputs and gradients of both are
compared before any clock starts. Then they take turns, and the shortest of the rounds counts: CPU seconds, since
others may use the machine. Gradients are those of parameters, since the vision encoder is frozen. Memory is the peak
beyond inputs, weights and their gradients. Batch 8 needs 8 GB.

- attention: everything but the last MLPs into the LLM's width;
- whole, 896 and 3584: the compressor for Qwen2.5-0.5B and 7B. The MLPs are the same work in both ways, and for the
  larger LLM more than everything else that ours does.

On a GPU it computes in bfloat16, prints the time over the bandwidth floor (values and keys read once, at the speed of
a copy), and the kernels that take most of the time. That part has not been run yet: there was no GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # instead of this folder, where this file hides the package of its name

import torch
from torch import Tensor, nn

from compressor.config import release
from compressor.hybrid import Features, HybridCompressor
from compressor.inject import Condition
from tests.compressor import naive

GRID = (32, 27, 27)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Largest difference over largest value."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


@dataclass(frozen=True)
class Inputs:
    features: Features
    condition: Condition


@dataclass(frozen=True)
class Cost:
    """Of one way on one batch."""

    forward_s: float
    both_s: float
    """Forward and backward."""
    forward_bytes: int
    both_bytes: int


Way = Callable[[HybridCompressor, Features, Condition], Tensor]
WAYS: dict[str, Way] = {"ours": lambda model, features, condition: model(features, condition), "plain": naive.forward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads")
    print(f"{'part':<12}{'batch':>6}{'':>18}{'ours':>12}{'plain':>12}{'ratio':>8}")
    for batch in args.batches:
        inputs = make_inputs(batch, device)
        for part, out_width in (("attention", None), ("whole, 896", 896), ("whole, 3584", 3584)):
            model = build(out_width, device)
            compare(model, inputs)
            report(part, batch, measure(model, inputs, args.rounds))
            if device.type == "cuda":
                report_floor(model, inputs)


def build(out_width: int | None, device: torch.device) -> HybridCompressor:
    """A release compressor with every parameter away from where it starts; None leaves out the last MLPs."""
    torch.manual_seed(0)
    model = HybridCompressor(release(out_width or 1))
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.02)
    assert model.local and model.local.injector and model.global_
    nn.init.constant_(model.local.injector.get_parameter("text.alpha"), 0.3)
    if out_width is None:
        for half in (model.local, model.global_):
            half.register_module("readout", nn.Identity())
    return model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def make_inputs(batch: int, device: torch.device) -> Inputs:
    torch.manual_seed(1)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    values, keys = (torch.randn(batch, *GRID, 1152, device=device, dtype=dtype) for _ in range(2))
    return Inputs(Features(values, keys), Condition(torch.randn(batch, 1152, device=device, dtype=dtype)))


def compare(model: HybridCompressor, inputs: Inputs) -> None:
    """Asserts that both ways give the same, forward and backward."""
    found = {name: gradients(model, way, inputs) for name, way in WAYS.items()}
    for name, ours in found["ours"].items():
        if "key.bias" in name:  # the same for every key, so its gradient is zero and what is left is rounding
            continue
        plain = found["plain"][name]
        error = ((ours - plain).abs().max() / plain.abs().max()).item()
        assert error < TOLERANCE[ours.dtype], f"{name}: the two ways differ by {error:.1e}"


def gradients(model: HybridCompressor, way: Way, inputs: Inputs) -> dict[str, Tensor]:
    """The tokens and the gradient of every parameter."""
    tokens = way(model, inputs.features, inputs.condition)
    both_passes(model, way, inputs)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"tokens": tokens.detach(), **found}


def forward_pass(model: HybridCompressor, way: Way, inputs: Inputs) -> None:
    with torch.no_grad():
        way(model, inputs.features, inputs.condition)


def both_passes(model: HybridCompressor, way: Way, inputs: Inputs) -> None:
    tokens = way(model, inputs.features, inputs.condition)
    generator = torch.Generator(tokens.device).manual_seed(2)
    tokens.backward(torch.randn(tokens.shape, generator=generator, device=tokens.device, dtype=tokens.dtype))


def measure(model: HybridCompressor, inputs: Inputs, rounds: int) -> dict[str, Cost]:
    """Cost of each way: the shortest of the rounds, in turns; then one more for the memory."""
    cuda = inputs.features.values_BTHWD.is_cuda
    passes = {
        (name, kind): partial(run, model, way, inputs)
        for name, way in WAYS.items()
        for kind, run in (("forward", forward_pass), ("both", both_passes))
    }
    rounds_s = [{key: seconds(run, cuda) for key, run in passes.items()} for _ in range(rounds)]
    best_s = {key: min(one[key] for one in rounds_s) for key in passes}
    peaks = {key: extra_bytes(run, cuda) for key, run in passes.items()}
    return {
        name: Cost(best_s[name, "forward"], best_s[name, "both"], peaks[name, "forward"], peaks[name, "both"])
        for name in WAYS
    }


def seconds(run: Callable[[], object], cuda: bool) -> float:
    """CPU time, or wall time on a GPU."""
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    run()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def extra_bytes(run: Callable[[], object], cuda: bool) -> int:
    """Bytes at the peak beyond what was in use before."""
    if not cuda:
        give_back_freed(at_once=True)
    before = reset_peak(cuda)
    run()
    peak = peak_bytes(cuda)
    if not cuda:
        give_back_freed(at_once=False)
    return peak - before


def give_back_freed(at_once: bool) -> None:
    """Whether glibc hands freed blocks back at once, so that memory counts what is in use, or keeps some, as it does
    by itself after a while, so that time does not count their pages over again."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 20 if at_once else 32 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 20 if at_once else 64 << 20)
    libc.malloc_trim(0)


def reset_peak(cuda: bool) -> int:
    """Forgets the peak of memory, and returns what is in use."""
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak_bytes(cuda: bool) -> int:
    return torch.cuda.max_memory_allocated() if cuda else status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """A field of Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def report(part: str, batch: int, costs: dict[str, Cost]) -> None:
    ours, plain = costs["ours"], costs["plain"]
    for label, mine, theirs in (
        ("forward", ours.forward_s, plain.forward_s),
        ("forward+backward", ours.both_s, plain.both_s),
    ):
        print(f"{part:<12}{batch:>6}{label:>18}{mine:>10.3f} s{theirs:>10.3f} s{theirs / mine:>7.1f}x")
    for label, mine, theirs in (
        ("memory forward", ours.forward_bytes, plain.forward_bytes),
        ("memory both", ours.both_bytes, plain.both_bytes),
    ):
        print(f"{part:<12}{batch:>6}{label:>18}{mine >> 20:>9} MiB{theirs >> 20:>8} MiB{theirs / mine:>7.1f}x")
    sys.stdout.flush()


def report_floor(model: HybridCompressor, inputs: Inputs) -> None:
    """Our time over that of reading values and keys once, and the kernels that take most of it."""
    values = inputs.features.values_BTHWD
    spent = {}
    for name, run in (
        ("copy", values.clone),
        ("ours", lambda: forward_pass(model, WAYS["ours"], inputs)),
    ):
        run()
        spent[name] = min(seconds(run, cuda=True) for _ in range(20))
    floor = spent["copy"]  # a copy reads values and writes as much: the bytes of values and keys
    print(f"floor {floor * 1e6:.0f} us, ours {spent['ours'] * 1e6:.0f} us: {spent['ours'] / floor:.1f}x the floor")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        forward_pass(model, WAYS["ours"], inputs)
    print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=8))


if __name__ == "__main__":
    main()
