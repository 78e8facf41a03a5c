"""Settings of the describer on vLLM, read without vLLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.media.budget import VideoBudget
from pipeline.models import registry
from pipeline.models.spec import ModelSpec
from pipeline.models.vllm import describer as vllm_describer
from pipeline.models.vllm.options import REFUSED, Options, engine_args, largest_clip, pair_tokens
from pipeline.stage import UserError

FOLDER = Path("/models/qwen")


def spec(**options: Any) -> ModelSpec:
    return ModelSpec(family="vllm", name="Qwen/Qwen2-VL-72B-Instruct", revision="f" * 40, options=options)


def test_the_card_reserves_a_gpu_for_each_rank_and_cores_as_vllm_advises() -> None:
    card = registry.card("describer", spec(tensor_parallel_size=4, replicas=2, in_flight=8))
    assert (card.gpus, card.cpus, card.replicas, card.in_flight, card.reads_prompts) == (4.0, 6.0, 2, 8, True)
    card = registry.card("describer", spec(gpus=0, cpus=0.5))
    assert (card.gpus, card.cpus) == (0.0, 0.5)


def test_the_largest_clip_of_qwen2_vl_fits_its_context_beside_prompts_and_answers() -> None:
    budget = registry.card("describer", spec()).budget
    assert budget is not None and budget.max_tokens is not None
    assert budget.frames(120).lowered_from is None
    assert 24576 <= budget.max_tokens < 32768 - Options().answer_tokens


def test_a_shorter_context_leaves_less_room_for_frames() -> None:
    budget = registry.card("describer", spec(max_model_len=16384)).budget
    assert budget is not None
    lowered = budget.frames(120)
    assert lowered.lowered_from == 240 and lowered.count < 240
    with pytest.raises(UserError, match=r"max_model_len 4096 has no room for frames: .* = 5120"):
        registry.card("describer", spec(max_model_len=4096))


def test_where_and_how_fast_it_runs_does_not_change_what_the_results_are() -> None:
    places = {"replicas": 3, "gpus": 0, "kv_cache_bytes": 1, "enforce_eager": True, "stall_s": 5.0, "max_num_seqs": 4}
    assert registry.identity("describer", spec(**places)) == registry.identity("describer", spec())
    for name, value in {"temperature": 1.0, "seed": 1, "max_model_len": 16384, "quantization": "fp8"}.items():
        changed = registry.identity("describer", spec(**{name: value}))
        assert changed != registry.identity("describer", spec()), name


@pytest.mark.parametrize("size", [1, 2])
def test_one_gpu_needs_no_worker_processes_and_none_ever_needs_rays(size: int) -> None:
    args = engine_args(FOLDER, Options(tensor_parallel_size=size))
    assert args["distributed_executor_backend"] == ("uni" if size == 1 else "mp")


def test_what_the_two_turns_rely_on_is_set() -> None:
    args = engine_args(FOLDER, Options(kv_cache_bytes=7, engine_args={"swap_space": 3}))
    assert args["model"] == "/models/qwen" and args["swap_space"] == 3 and args["kv_cache_memory_bytes"] == 7
    assert args["enable_prefix_caching"] and args["scheduling_policy"] == "priority"
    assert not args["mm_processor_kwargs"]["do_resize"] and not args["mm_processor_kwargs"]["do_sample_frames"]
    assert args["structured_outputs_config"]["disable_any_whitespace"]
    assert "gpu_memory_utilization" not in args, "vLLM's own default"


def test_an_argument_of_the_engine_that_is_ours_to_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"engine_args: max_model_len, scheduling_policy has an option of its own"):
        engine_args(FOLDER, Options(engine_args={"scheduling_policy": "fcfs", "max_model_len": 1}))


def test_remote_code_and_files_of_no_commit_are_refused_before_any_work() -> None:
    for name in REFUSED:
        with pytest.raises(UserError, match=f"engine_args: {name} may not be set: a model is the files of its commit"):
            registry.card("describer", spec(engine_args={name: "x"}))
        with pytest.raises(UserError, match=name):
            engine_args(FOLDER, Options(engine_args={name: "x"}))
    assert {"trust_remote_code", "load_format", "tokenizer", "hf_overrides"} <= REFUSED


def test_one_step_has_room_for_the_frames_of_the_largest_clip() -> None:
    assert engine_args(FOLDER, Options())["max_num_batched_tokens"] == largest_clip(Options().budget()) >= 24576
    assert engine_args(FOLDER, Options(max_pixels=28 * 28 * 128, max_frames=32))["max_num_batched_tokens"] == 8192
    assert largest_clip(VideoBudget(max_tokens=5000)) <= 5000


def test_tokens_are_two_frames_of_28_by_28_pixels() -> None:
    assert pair_tokens(28, 28) == 1 and pair_tokens(112, 140) == 20


def test_a_model_of_another_kind_is_refused_before_the_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_describer, "require", lambda *modules, extra: None)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"config.json says 'llama'.* take the family openai"):
        vllm_describer.load(ModelSpec(family="vllm", name="x/y", path=str(tmp_path)))


def test_a_damaged_config_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_describer, "require", lambda *modules, extra: None)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"/config\.json is damaged \(.*copy it again"):
        vllm_describer.load(ModelSpec(family="vllm", name="x/y", path=str(tmp_path)))


def test_missing_weights_and_packages_are_told_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_describer, "lacking_packages", lambda modules, extra: [f"no {m}" for m in modules])
    lines = registry.lacks("describer", ModelSpec(family="vllm", name="x/y", path="/nowhere"))
    assert lines[:2] == ["no vllm", "no transformers"] and "'/nowhere' is not a folder" in lines[2]


def test_reading_the_settings_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pipeline.models import registry\nfrom pipeline.models.spec import ModelSpec\n"
        "registry.card('describer', ModelSpec(family='vllm', name='x/y', options={'replicas': 2}))\n"
        "found = [m for m in ('torch', 'vllm', 'transformers') if m in sys.modules]\nassert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
