"""The open_clip video-text embedder against open_clip's own model and tokenizer."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.models import registry
from pipeline.models.open_clip.video import OpenClipVideoEmbedder
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError
from tests.models import tiny_open_clip

pytestmark = pytest.mark.skipif(find_spec("open_clip") is None, reason="needs the extra models")

SENTENCES = ["People play football on a field.", "cooking; a kitchen", "A DIARY of someone's day"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_open_clip.build(tmp_path_factory.mktemp("tiny"))


def _spec(place: Path, **options: Any) -> ModelSpec:
    return ModelSpec(family="open_clip", name="tiny", path=str(place), options={"device": "cpu", **options})


@pytest.fixture(scope="module")
def model(tiny: Path) -> OpenClipVideoEmbedder:
    found = registry.load_video_text_embedder(_spec(tiny))
    assert isinstance(found, OpenClipVideoEmbedder)
    return found


def _videos(count: int, frames: int = 4) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, frames, tiny_open_clip.IMAGE_PX, tiny_open_clip.IMAGE_PX, 3), dtype=np.uint8)


def test_a_video_is_the_mean_of_its_frames_unit_vectors(tiny: Path, model: OpenClipVideoEmbedder) -> None:
    videos = _videos(5)
    frames = registry.load_frame_embedder(_spec(tiny)).embed(videos.reshape(-1, *videos.shape[2:]))
    means = frames.reshape(5, 4, -1).mean(axis=1)
    ours = model.embed_videos(videos)
    assert ours.dtype == np.float32 and ours.shape == (5, model.dim) == (5, tiny_open_clip.DIM)
    assert np.abs(ours - means / np.linalg.norm(means, axis=1, keepdims=True)).max() < 1e-6
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("frames", [1, 4, 9])
def test_the_same_video_gives_the_same_vector_in_any_batch(model: OpenClipVideoEmbedder, frames: int) -> None:
    videos = _videos(8, frames)
    whole = model.embed_videos(videos)
    one_by_one = [model.embed_videos(videos[i : i + 1]) for i in range(8)]
    assert np.array_equal(np.concatenate(one_by_one), whole)


def test_sentences_get_the_vectors_that_open_clip_gives_them(tiny: Path, model: OpenClipVideoEmbedder) -> None:
    import open_clip
    import torch

    own = open_clip.create_model(f"local-dir:{tiny}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny}")(SENTENCES)
    with torch.inference_mode():
        theirs = own.encode_text(tokens, normalize=True).numpy()
    ours = model.embed_texts(SENTENCES)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-6
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-6
    assert (ours @ ours.T)[0, 1] < 0.999


def test_many_sentences_keep_their_order(model: OpenClipVideoEmbedder) -> None:
    sentences = [f"{SENTENCES[i % 3]} {i}" for i in range(150)]
    many = model.embed_texts(sentences)
    assert many.shape == (150, tiny_open_clip.DIM)
    assert np.abs(many[97] - model.embed_texts(sentences[97:98])[0]).max() < 1e-5


def test_no_sentence_gives_no_vector(model: OpenClipVideoEmbedder) -> None:
    assert model.embed_texts([]).shape == (0, model.dim)


def test_without_a_reserved_gpu_it_computes_on_the_cpu(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = registry.load_video_text_embedder(_spec(tiny, device="auto", max_batch=1))
    assert found.embed_texts(["a dog"]).shape == (1, tiny_open_clip.DIM)


def test_pictures_that_do_not_fit_say_what_to_set(
    tiny: Path, model: OpenClipVideoEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    import torch

    def full(*args: Any, **given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(open_clip.transformer.VisionTransformer, "forward", full)
    with pytest.raises(UserError, match="no room on the GPU for 8 pictures at once; lower its option max_batch"):
        registry.load_video_text_embedder(_spec(tiny, max_batch=8))


def test_a_sentence_that_would_be_cut_off_is_refused(model: OpenClipVideoEmbedder) -> None:
    fits = "dog " * (tiny_open_clip.CONTEXT - 2)
    assert model.embed_texts([fits]).shape == (1, tiny_open_clip.DIM)
    with pytest.raises(UserError, match=r"25 tokens, and open_clip:tiny@ reads 24; the rest would be cut off"):
        model.embed_texts(["a dog", fits + "dog"])


def test_a_call_holds_as_many_videos_as_the_frames_fill(tiny: Path) -> None:
    assert registry.load_video_text_embedder(_spec(tiny, max_batch=12)).max_batch == 3
    assert registry.load_video_text_embedder(_spec(tiny, max_batch=2)).max_batch == 1


def test_a_text_side_with_a_tokenizer_of_transformers_reads_it_from_the_folder(tmp_path: Path) -> None:
    place = _with_own_tokenizer(tmp_path / "model")
    model = registry.load_video_text_embedder(_spec(place))
    near, far = model.embed_texts(["a dog", "A  dog"]), model.embed_texts(["ball red"])
    assert np.abs(near[0] - near[1]).max() < 1e-6 < np.abs(near[0] - far[0]).max()
    with pytest.raises(UserError, match=r"26 tokens, and open_clip:tiny@ reads 24"):
        model.embed_texts(["dog " * 24])
    (place / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="open_clip cannot load its tokenizer"):
        registry.load_video_text_embedder(_spec(place))


def _with_own_tokenizer(place: Path) -> Path:
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "ball", "red"]
    text = {
        **tiny_open_clip.MODEL["text_cfg"],
        "vocab_size": 16,
        "hf_tokenizer_name": "somebody/elses",
        "pool_type": "last",
    }
    tiny_open_clip.build(place, text_cfg=text)
    (place / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place)
    return place
