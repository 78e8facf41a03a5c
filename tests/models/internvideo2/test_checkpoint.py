"""Checkpoints: every name of the published ones is accounted for, and any other file is refused by name."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models import registry
from pipeline.models.internvideo2.checkpoint import Account, account, read, unused
from pipeline.models.internvideo2.model import InternVideo2
from pipeline.models.internvideo2.sizes import PUBLISHED, Size
from pipeline.stage import UserError
from tests.models import tiny_internvideo2 as tiny

ONE_B = PUBLISHED["OpenGVLab/InternVideo2-Stage2_1B-224p-f4"]
SIX_B = PUBLISHED["OpenGVLab/InternVideo2-Stage2_6B-224p-f4"]

Tensors = dict[str, Any]


def expected(size: Size) -> tiny.Shapes:
    with torch.device("meta"):
        return {name: tuple(of.shape) for name, of in InternVideo2(size).state_dict().items()}


def accounted(name: str, size: Size) -> Account:
    return account(tiny.shapes(name), expected(size), size)


def test_every_name_and_shape_of_the_published_1b_is_accounted_for() -> None:
    """The names and shapes are those that the authors' own class and config build. In half precision, with the tied
    weight once, these tensors are 2,820,297,082 bytes; the published file is said to have 2,820,610,931."""
    found = accounted("1B", ONE_B)
    assert found.complaints == []
    assert len(found.used) == 852
    assert {purpose: len(names) for purpose, names in found.unused.items()} == {
        "decoders to the training's teacher": 24,
        "decoder of the pooled vector to the teacher": 4,
        "positions for those decoders": 2,
        "fusion layers": 80,
        "fusion layers' attention to the video": 50,
        "a constant: 0, 1, 2 ...": 1,
        "masked language modelling": 7,
        "matching of a text and a video, by the fusion layers": 2,
        "temperature of the training's contrast": 1,
    }


def test_every_name_and_shape_of_the_6b_is_accounted_for() -> None:
    """As the authors' audio-visual class builds it, without its audio encoder."""
    found = accounted("6B", SIX_B)
    assert found.complaints == []
    assert len(found.used) + sum(map(len, found.unused.values())) == len(tiny.shapes("6B"))
    with_sound = tiny.shapes("6B") | {"audio_encoder.encoder.layers.0.fc1.weight": (3072, 768)}
    assert account(with_sound, expected(SIX_B), SIX_B).complaints == []
    assert account(with_sound, expected(ONE_B), ONE_B).unknown != []


def test_what_is_not_used_is_exactly_what_the_training_needs_beside() -> None:
    """A pattern that nothing in the 1B matches would let an unknown tensor in."""
    assert len(accounted("1B", ONE_B).unused) == len(set(unused(ONE_B).values()))


def test_the_kinds_of_trouble_are_told_apart() -> None:
    names = {**tiny.shapes("tiny"), "extra": (1,), "text_encoder.bert.encoder.layer.0.crossattention.x": (2,)}
    del names["vision_encoder.cls_token"]
    names["vision_proj.weight"] = (16, 21)
    found = account(names, expected(tiny.TINY), tiny.TINY)
    assert found.missing == ["vision_encoder.cls_token"]
    assert found.unknown == ["extra", "text_encoder.bert.encoder.layer.0.crossattention.x"]
    assert found.misshapen == ["vision_proj.weight [16, 21], expected [16, 20]"]


def without(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.pop(name)


def with_one(name: str, shape: tuple[int, ...]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (without("text_proj.bias"), r"1 missing: text_proj\.bias"),
        (with_one("vision_encoder.head.weight", (2, 2)), r"1 unknown: vision_encoder\.head\.weight"),
        (
            with_one("vision_encoder.pos_embed", (1, 33, 48)),
            r"1 of another shape: vision_encoder\.pos_embed \[1, 33, 48\], expected \[1, 17, 48\]",
        ),
        (lambda tensors: tensors.clear() or tensors.update(x=torch.zeros(1)), r"\d+ missing: .* more; 1 unknown: x"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Tensors], None], complaint: str
) -> None:
    tiny.build(tmp_path)
    tensors = tiny.tensors()
    damage(tensors)
    torch.save({"module": tensors}, tmp_path / tiny.TINY.file)
    with pytest.raises(UserError, match=complaint):
        registry.load_video_text_embedder(tiny.spec(tmp_path))


@pytest.mark.parametrize("wrapped", [lambda t: {"model": t, "epoch": 3}, lambda t: {"module": t}, lambda t: t])
def test_published_layouts_are_read(tmp_path: Path, wrapped: Callable[[Tensors], Tensors]) -> None:
    tensors = tiny.tensors()
    torch.save(wrapped(tensors), tmp_path / "x.pt")
    found = read(tmp_path / "x.pt")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_file_of_before_pytorch_1_6_is_read(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read(tmp_path / "old.pt")["a"], torch.ones(2))


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("saved_by", ["pickle", "torch"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, saved_by: str) -> None:
    file, sprung = tmp_path / "trap.pt", tmp_path / "sprung"
    content = {"model": {"a": torch.ones(2)}, "args": Trap(sprung)}
    if saved_by == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="holds tensors only; nothing else in it was run"):
        read(file)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid", b"PK\x03\x04" + b"\0" * 99]
)
def test_bytes_that_are_no_checkpoint_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint"):
        read(tmp_path / "x.pt")


def test_a_download_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    torch.save({"module": tiny.tensors()}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a checkpoint"):
        read(tmp_path / "half.pt")


@pytest.mark.parametrize("content", [{}, {"model": 3}, [1, 2], {"a": torch.ones(1), "b": "text"}])
def test_anything_but_tensors_by_name_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match="expected tensors by name"):
        read(tmp_path / "x.pt")


def test_a_half_precision_file_gives_the_asked_precision(tmp_path: Path) -> None:
    """The published 1B is stored in two bytes a number."""
    folder = tiny.build(tmp_path)
    halves = {name: of.half() if of.is_floating_point() else of for name, of in tiny.tensors().items()}
    torch.save({"module": halves}, folder / tiny.TINY.file)
    model = registry.load_video_text_embedder(tiny.spec(folder))
    assert {of.dtype for of in model._model.parameters()} == {torch.float32}  # type: ignore[attr-defined]


def test_the_tiny_checkpoint_has_the_structure_of_the_published_one() -> None:
    """What tests read is what users have: the same names, but for the number of layers."""

    def pattern(names: tiny.Shapes) -> set[str]:
        return {re.sub(r"\d+", "N", name) for name in names}

    assert pattern(tiny.shapes("tiny")) == pattern(tiny.shapes("1B"))
