"""The authors' checkpoint file: there and back, strictly, and never as code."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compressor.config import (
    CompressorConfig,
    Injection,
    InjectionConfig,
    TextPath,
    average_pooling,
    paper,
    release,
    unconditional,
)
from compressor.hybrid import HybridCompressor
from compressor.interchange import from_theirs, read, read_tensors, to_theirs, write
from compressor.release_form import PREFIX, config_of
from tests.compressor.release_cases import CASES

WIDTH = 128
RELEASED = [
    *(f"local_compressor.guide_injector.guide_proj.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    *(f"local_compressor.guide_injector.guide_norm.{kind}" for kind in ("weight", "bias")),
    "local_compressor.guide_injector.guide_alpha",
    *(f"local_compressor.readout.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    "global_compressor.query",
    *(f"global_compressor.guide_injector.coarse_proj.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    *(f"global_compressor.guide_injector.coarse_norm.{kind}" for kind in ("weight", "bias")),
    *(
        f"global_compressor.attn_layer.{one}_proj.{kind}"
        for one in ("q", "k", "v", "out")
        for kind in ("weight", "bias")
    ),
    *(f"global_compressor.readout.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
]
"""Names in the file that the authors published."""


def small(config: CompressorConfig) -> CompressorConfig:
    """One head of 128 channels, few tokens."""
    local, global_ = config.local, config.global_
    if local and local.injection:
        local = replace(local, injection=replace(local.injection, heads=1))
    if global_ and global_.injection:
        global_ = replace(global_, injection=replace(global_.injection, heads=1))
    return replace(config, width=WIDTH, local=local, global_=global_ and replace(global_, heads=1, tokens=3))


def built(config: CompressorConfig) -> HybridCompressor:
    model = HybridCompressor(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def test_names_are_those_of_the_published_file() -> None:
    assert sorted(to_theirs(built(small(release(8))))) == sorted(PREFIX + name for name in RELEASED)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    model = built(small(CASES[name].config)).bfloat16()
    write(model, tmp_path / "mm_projector.bin")
    state = read_tensors(tmp_path / "mm_projector.bin")
    again = HybridCompressor(small(CASES[name].config)).bfloat16()
    read(tmp_path / "mm_projector.bin", again)
    assert {key: value.tolist() for key, value in again.state_dict().items()} == {
        key: value.tolist() for key, value in model.state_dict().items()
    }
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert to_theirs(again).keys() == state.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_config_is_in_the_names(name: str) -> None:
    config = small(CASES[name].config)
    assert config_of(to_theirs(built(config))) == config


def test_every_wrong_name_is_listed() -> None:
    model = built(small(release(8)))
    state = to_theirs(model)
    state["model.mm_projector.unheard_of"] = torch.ones(1)
    del state[f"{PREFIX}global_compressor.query"]
    state[f"{PREFIX}local_compressor.readout.0.bias"] = torch.ones(3)
    with pytest.raises(ValueError) as raised:
        from_theirs(state, model)
    message = str(raised.value)
    assert "unknown: model.mm_projector.unheard_of" in message
    assert f"missing: {PREFIX}global_compressor.query (our global_.tokens)" in message
    assert f"shape: {PREFIX}local_compressor.readout.0.bias is [3], not [8]" in message


def test_a_wrong_file_leaves_the_model_as_it_was() -> None:
    model, other = built(small(release(8))), to_theirs(built(small(release(8))))
    before = to_theirs(model)
    other.popitem()
    with pytest.raises(ValueError, match="missing"):
        from_theirs(other, model)
    assert all(torch.equal(value, before[key]) for key, value in to_theirs(model).items())


def test_an_alignment_checkpoint_may_lack_the_injectors() -> None:
    aligned = built(small(unconditional(release(8))))
    model = built(small(release(8)))
    before = to_theirs(model)
    with pytest.raises(ValueError, match="missing"):
        from_theirs(to_theirs(aligned), model)
    from_theirs(to_theirs(aligned), model, fresh=("local.injector", "global_.injector"))
    for key, value in to_theirs(model).items():
        assert torch.equal(value, before[key] if "guide_injector" in key else to_theirs(aligned)[key])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (paper(8), "local.resized_query is True there"),
        (average_pooling(release(8)), "local needs attention"),
        (replace(release(8), global_=replace(release(8).global_, heads=4)), "global_.heads are width / 128 there"),
        (replace(release(8), global_=replace(release(8).global_, residual=False)), "residual is True there"),
    ],
)
def test_what_their_code_cannot_express_is_refused(config: CompressorConfig, message: str) -> None:
    with torch.device("meta"):
        model = HybridCompressor(config)
    with pytest.raises(ValueError, match=message):
        to_theirs(model)


def test_other_text_paths_and_norms_are_refused() -> None:
    config = small(release(8))
    assert config.local and config.global_
    mlp = InjectionConfig(kind=Injection.DIRECT, text=TextPath.MLP)
    first = InjectionConfig(kind=Injection.COARSE)
    config = replace(
        config, local=replace(config.local, injection=mlp), global_=replace(config.global_, injection=first)
    )
    with pytest.raises(ValueError, match=r"plain or gated there; injection\.norm_last is True there"):
        to_theirs(built(config))


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_a_file_never_runs_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model.mm_projector.query": Harm()}, tmp_path / "mm_projector.bin")
    with pytest.raises(pickle.UnpicklingError):
        read_tensors(tmp_path / "mm_projector.bin")
    assert "run" not in capsys.readouterr().out


def test_another_file_is_named_as_such(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "other.bin")
    with pytest.raises(ValueError, match=r"other\.bin is no checkpoint"):
        read_tensors(tmp_path / "other.bin")
    with pytest.raises(ValueError, match="no checkpoint of a local or global"):
        config_of({"lm_head.weight": torch.ones(1)})
