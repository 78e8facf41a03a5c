"""Whether a model fits the GPUs: sums that can be followed by hand, on stand-ins for GPUs and tiny files of weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.doctor.check import Lacking
from pipeline.doctor.memory import fit
from pipeline.models.spec import ModelSpec
from tests.fake_driver import gpus, put_driver

BIG, SMALL = "Qwen/Qwen2-VL-72B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"
H200_MIB = 143771

Driver = Callable[..., None]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    (tmp_path / "bin").mkdir()
    return partial(put_driver, tmp_path / "bin", monkeypatch)


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)


def spec(name: str = BIG, path: Path | None = None, **options: Any) -> ModelSpec:
    return ModelSpec(family="vllm", name=name, revision="0" * 40, path=str(path) if path else None, options=options)


def lack(described: ModelSpec) -> str:
    with pytest.raises(Lacking) as caught:
        fit(described)
    return str(caught.value)


# The published sizes


def test_the_papers_model_fits_four_gpus_of_80_gib(driver: Driver) -> None:
    driver(gpus(4))
    assert fit(spec(tensor_parallel_size=4)) == (
        "of 73.6 GiB for the engine on each of 4 GPUs weights take 34.2 GiB and activations about 4 GiB; room to "
        "remember 464,229 tokens, 14 contexts of 32,768"
    )


def test_too_few_gpus_for_the_weights_say_how_many_would_do(driver: Driver) -> None:
    driver(gpus(8))
    for size in (1, 2):
        said = lack(spec(tensor_parallel_size=size))
        assert "less than one context of 32,768" in said
        assert "with so many GPUs --set models.describer.options.tensor_parallel_size=4" in said


def test_two_large_gpus_do(driver: Driver) -> None:
    driver(gpus(2, mib=H200_MIB, name="NVIDIA H200"))
    assert "weights take 68.4 GiB" in fit(spec(tensor_parallel_size=2))


def test_a_context_that_does_not_fit_beside_the_weights_may_be_made_shorter(driver: Driver) -> None:
    driver(gpus(1, mib=5 << 10))
    said = lack(spec(SMALL))
    assert said.endswith(
        "take a smaller or a quantised model, or a shorter context: --set models.describer.options.max_model_len"
    )
    driver(gpus(1, mib=16 << 10))
    assert "7 contexts" in fit(spec(SMALL))


def test_the_engines_share_of_the_memory_counts(driver: Driver) -> None:
    driver(gpus(4))
    assert "of 44.0 GiB" in fit(spec(tensor_parallel_size=4, gpu_memory_utilization=0.55))
    assert "of 40.0 GiB" in lack(spec(tensor_parallel_size=4, gpu_memory_utilization=0.5))


def test_a_cache_whose_size_is_said_counts_as_said(driver: Driver) -> None:
    driver(gpus(4))
    assert "remember 131,072 tokens, 4 contexts" in fit(spec(tensor_parallel_size=4, kv_cache_bytes=10 << 30))
    said = lack(spec(tensor_parallel_size=4, kv_cache_bytes=1 << 30))
    assert "13,107 tokens" in said and "leave kv_cache_bytes out, or --set models.describer.options.kv_cache" in said


def test_a_cache_larger_than_what_the_weights_leave_is_told(driver: Driver) -> None:
    driver(gpus(1, mib=24 << 10))
    room = int((24 << 30) * 0.92) - 4_417_971_200 - (4 << 30)
    said = lack(spec(SMALL, kv_cache_bytes=100 << 30))
    assert "kv_cache_bytes asks for 100.0 GiB where 14.0 GiB are left" in said
    assert said.endswith(f"leave kv_cache_bytes out, or --set models.describer.options.kv_cache_bytes={room}")
    assert fit(spec(SMALL, kv_cache_bytes=room))
    assert "asks for" in lack(spec(SMALL, kv_cache_bytes=room + 1))


def test_the_smallest_gpu_of_the_group_decides(driver: Driver) -> None:
    driver(gpus(1) + gpus(2, mib=40960).splitlines(keepends=True)[1])
    assert "of 36.8 GiB" in lack(spec(tensor_parallel_size=2))


# What else keeps an engine from starting


def test_fewer_gpus_than_the_engine_takes(driver: Driver) -> None:
    driver(gpus(1))
    assert lack(spec(tensor_parallel_size=4)).startswith("one engine takes 4 GPUs and this machine has 1")


def test_heads_that_do_not_go_round(driver: Driver) -> None:
    driver(gpus(8))
    said = lack(spec(SMALL, tensor_parallel_size=8))
    assert said == "12 heads do not go round 8 GPUs; --set models.describer.options.tensor_parallel_size=6"


def test_memory_that_others_hold(driver: Driver) -> None:
    driver(gpus(4, used_mib=20480))
    said = lack(spec(tensor_parallel_size=4))
    assert said.startswith("other processes hold 20.0 of 80.0 GiB of GPU 0, and the engine is to take a share of 0.92;")
    assert said.endswith("--set models.describer.options.gpu_memory_utilization=0.73")
    assert fit(spec(tensor_parallel_size=4, gpu_memory_utilization=0.73))


def test_a_driver_that_does_not_answer(driver: Driver) -> None:
    driver("broken\n", 9)
    assert lack(spec()) == "nvidia-smi: broken"


# Where nothing can be said


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"gpus": 0}, "the engine reserves no GPU"),
        ({"quantization": "fp8"}, "turns the weights into another type"),
        ({"dtype": "float32"}, "turns the weights into another type"),
        ({"engine_args": {"kv_cache_dtype": "fp8"}}, "engine_args sets kv_cache_dtype"),
    ],
)
def test_settings_that_change_the_sums_are_named(options: dict[str, Any], why: str) -> None:
    assert why in fit(spec(**options))


def test_a_model_that_is_neither_here_nor_in_the_table_is_not_known() -> None:
    assert fit(spec("someone/else")) == ("not worked out: nothing is known of someone/else before its weights are here")


def test_gpus_without_a_number_for_their_memory(driver: Driver) -> None:
    driver("0, GPU-c, NVIDIA GB10, [N/A], [N/A]\n")
    assert fit(spec(SMALL)) == "not worked out: the driver has no number for the memory of these GPUs"


# The weights themselves


def test_weights_that_are_here_count_and_not_the_table(driver: Driver, tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    config = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
    (place / "config.json").write_text(json.dumps(config))
    (place / "model.safetensors").write_bytes(b"\0" * 1000)
    driver(gpus(1, mib=10240))
    said = fit(spec(BIG, place))
    tokens = int((0.92 * 10 - 4) * 2**30 - 1000) // (2 * 4 * 2 * 16 * 2)
    assert f"weights take 0.0 GiB and activations about 4 GiB; room to remember {tokens:,} tokens" in said
