"""Makes golden_release.safetensors: what the authors' code gives on the cases of `release_cases.py`.

    git clone https://github.com/lntzm/HICom && python -m tests.compressor.make_golden HICom

Weights and inputs are drawn by name (`drawn.py`), so the file holds results only: tokens, and of every gradient 64
entries and its largest value. It was made with torch 2.13 on a CPU with AVX-512; other versions and processors add up
in another order, and then differ by about 1e-6 of the largest value.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from tests.compressor.drawn import drawn, drawn_parameter, sampled
from tests.compressor.release_cases import CASES, OUT_WIDTH, Case
from tests.compressor.release_code import projector_builder, projector_config

GOLDEN = Path(__file__).with_name("golden_release.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of github.com/lntzm/HICom")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    args = parser.parse_args()
    build = projector_builder(args.checkout)
    found: dict[str, Tensor] = {}
    for name, case in CASES.items():
        model = build(projector_config(case.kind, case.guide, OUT_WIDTH))
        for parameter_name, parameter in model.named_parameters():
            parameter.data.copy_(drawn_parameter(parameter_name, tuple(parameter.shape)))
        found |= {f"{name}/{key}": value for key, value in results(model, case).items()}
    save_file(found, args.out, metadata={"source": "github.com/lntzm/HICom, hicom/model/projector.py"})


def results(model: object, case: Case) -> dict[str, Tensor]:
    """Tokens, and what is kept of the gradients of inputs and parameters."""
    inputs = {name: value.clone().requires_grad_() for name, value in case.inputs().items()}
    tokens = model(inputs["values"], inputs.get("keys"), inputs.get("text"), "video")  # type: ignore[operator]
    (tokens * drawn("gradient", tuple(tokens.shape), 1.0)).sum().backward()
    named = [*inputs.items(), *model.named_parameters()]  # type: ignore[attr-defined]
    found = {"tokens": tokens.detach().clone()}
    for name, value in named:
        found |= {f"{name}.grad": sampled(value.grad), f"{name}.max": value.grad.abs().max()}
    return found


if __name__ == "__main__":
    main()
