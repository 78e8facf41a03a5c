"""Reads and writes the authors' checkpoint of a compressor, `mm_projector.bin`.

The file is a dict of tensors saved by `torch.save`. It is read as tensors only, never as pickled objects, and strictly:
every name must be known and every parameter present. It says nothing of the arithmetic, so only a config that their
code can express may be read or written; `release_form.config_of` finds the one that a file belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import BinaryIO

import torch
from torch import Tensor

from compressor.hybrid import HybridCompressor
from compressor.release_form import PREFIX, check_expressible

State = dict[str, Tensor]
File = str | PathLike[str] | BinaryIO

_INJECTOR = {
    "text.branch": "guide_proj",
    "text.norm": "guide_norm",
    "text.alpha": "guide_alpha",
    "scale_shift": "coarse_proj",
    "coarse_norm": "coarse_norm",
    "attention.query": "fine_proj.q_proj",
    "attention.key": "fine_proj.k_proj",
    "attention.value": "fine_proj.v_proj",
    "attention.out": "fine_proj.out_proj",
    "fine_norm": "fine_norm",
}
_LOCAL = {
    "adapt_query.branch": "q_proj",
    "adapt_query.norm": "q_norm",
    "adapt_query.alpha": "q_alpha",
    "adapt_keys.branch": "k_proj",
    "adapt_keys.norm": "k_norm",
    "adapt_keys.alpha": "k_alpha",
    "adapt_values.branch": "v_proj",
    "adapt_values.norm": "v_norm",
    "adapt_values.alpha": "v_alpha",
    "readout": "readout",
}
_GLOBAL = {
    "tokens": "query",
    "attention.query": "attn_layer.q_proj",
    "attention.key": "attn_layer.k_proj",
    "attention.value": "attn_layer.v_proj",
    "attention.out": "attn_layer.out_proj",
    "readout": "readout",
}
NAMES: dict[str, str] = {
    **{f"local.{ours}": f"local_compressor.{theirs}" for ours, theirs in _LOCAL.items()},
    **{f"local.injector.{ours}": f"local_compressor.guide_injector.{theirs}" for ours, theirs in _INJECTOR.items()},
    **{f"global_.{ours}": f"global_compressor.{theirs}" for ours, theirs in _GLOBAL.items()},
    **{f"global_.injector.{ours}": f"global_compressor.guide_injector.{theirs}" for ours, theirs in _INJECTOR.items()},
}
"""Our modules and parameters, and theirs; below a module, names are the same."""


def read(file: File, model: HybridCompressor, fresh: tuple[str, ...] = ()) -> None:
    """Fills `model` from their file.

    `fresh` names parts of ours that the file may lack and that then keep their values: ("local.injector",
    "global_.injector") where a conditional stage begins with an alignment checkpoint.
    """
    from_theirs(read_tensors(file), model, fresh)


def write(model: HybridCompressor, file: File) -> None:
    """Writes their file."""
    torch.save(to_theirs(model), file)


def read_tensors(file: File) -> State:
    """What their file holds, on the CPU."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} is no checkpoint of a compressor: expected a dict of tensors")
    return state


def from_theirs(state: Mapping[str, Tensor], model: HybridCompressor, fresh: tuple[str, ...] = ()) -> None:
    """Fills `model` from tensors by their names."""
    check_expressible(model.config)
    parameters = model.state_dict()
    wanted = {their_name(name): name for name in parameters}
    wrong = [f"unknown: {name}" for name in sorted(state.keys() - wanted.keys())]
    for theirs, ours in wanted.items():
        if theirs not in state:
            wrong += [] if ours.startswith(tuple(f"{part}." for part in fresh)) else [f"missing: {theirs} (our {ours})"]
        elif state[theirs].shape != parameters[ours].shape:
            wrong.append(f"shape: {theirs} is {list(state[theirs].shape)}, not {list(parameters[ours].shape)}")
    if wrong:
        raise ValueError("the checkpoint does not fit this compressor:\n" + "\n".join(wrong))
    for theirs, ours in wanted.items():
        if theirs in state:
            parameters[ours].copy_(state[theirs])


def to_theirs(model: HybridCompressor) -> State:
    """The model's tensors by their names, on the CPU."""
    check_expressible(model.config)
    return {their_name(name): value.detach().cpu().clone() for name, value in model.state_dict().items()}


def their_name(ours: str) -> str:
    """Their name of a parameter."""
    head, rest = ours, ""
    while head not in NAMES:
        head, _, last = head.rpartition(".")
        assert head, f"{ours} has no line in NAMES"
        rest = f".{last}{rest}"
    return f"{PREFIX}{NAMES[head]}{rest}"
