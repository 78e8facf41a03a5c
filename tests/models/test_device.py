"""Choosing where to compute."""

from __future__ import annotations

from importlib.util import find_spec
from typing import get_args

import pytest

from pipeline.models.device import DType, inference, torch_device, torch_dtype
from pipeline.stage import UserError

pytestmark = pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra models")


@pytest.mark.parametrize("there", [True, False])
def test_auto_takes_a_gpu_that_is_there_and_reserved(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert torch_device("auto", gpus=0.25).type == ("cuda" if there else "cpu")
    assert torch_device("auto", gpus=0).type == torch_device("cpu", gpus=1).type == "cpu"


def test_a_gpu_can_be_asked_for_without_reserving_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_device("cuda", gpus=0).type == "cuda"


def test_a_gpu_that_is_not_there_is_the_users_business(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"this process sees no GPU; .* Set gpus: 1, or device: auto"):
        torch_device("cuda", gpus=1)


@pytest.mark.parametrize("name", get_args(DType))
def test_types_are_torchs_own(name: DType) -> None:
    assert str(torch_dtype(name)) == f"torch.{name}"


def test_inference_leaves_torchs_settings_as_they_were() -> None:
    import torch

    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    with inference():
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == (False, True)
        assert torch.is_inference_mode_enabled()
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == before
    assert not torch.is_inference_mode_enabled()
