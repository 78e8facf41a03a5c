"""InternVideo2 against what the authors' code gave for the same weights (see golden/original.py)."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.media.frames import FrameSpec
from pipeline.media.sample import _moments
from pipeline.models import registry
from pipeline.models.internvideo2.sizes import SIZE_FILE
from pipeline.models.protocols import VideoTextEmbedder
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError
from tests.models import tiny_internvideo2 as tiny

SIDE = tiny.TINY.vision.image_px
GOLDEN = Path(__file__).parent / "golden" / "internvideo2_tiny.npz"
TOLERANCE = 1e-5
"""Of the largest number of a unit vector. The order of additions alone makes up to 1e-6."""
PUBLISHED_1B = "OpenGVLab/InternVideo2-Stage2_1B-224p-f4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint's folder. Read only: tests share it."""
    return tiny.build(tmp_path_factory.mktemp("internvideo2"))


@pytest.fixture(scope="module")
def model(folder: Path) -> VideoTextEmbedder:
    return registry.load_video_text_embedder(tiny.spec(folder))


@pytest.fixture(scope="module")
def golden() -> dict[str, npt.NDArray[np.float32]]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def assert_same(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    assert np.abs(ours - unit(theirs)).max() < TOLERANCE * np.abs(unit(theirs)).max()
    assert np.abs(np.linalg.norm(ours, axis=-1) - 1).max() < 1e-6


@pytest.mark.parametrize("frames", [4, 1, 2, 7])
def test_videos_are_where_the_original_puts_them(
    model: VideoTextEmbedder, golden: dict[str, npt.NDArray[np.float32]], frames: int
) -> None:
    """4 frames as trained; 1 is a picture; for others the position embedding is interpolated."""
    assert_same(model.embed_videos(tiny.videos(3, frames, SIDE)), golden[f"videos_{frames}"])


@pytest.mark.parametrize("frames", [4, 1])
def test_without_positions_for_pictures_the_frames_share_theirs(
    tmp_path: Path, golden: dict[str, npt.NDArray[np.float32]], frames: int
) -> None:
    """As in the 6B model."""
    import torch

    shared = dataclasses.replace(tiny.TINY, vision=dataclasses.replace(tiny.TINY.vision, image_positions=False))
    tiny.build(tmp_path)
    tiny.write_size(tmp_path, shared)
    kept = {name: value for name, value in tiny.tensors().items() if "img_pos_embed" not in name}
    torch.save({"module": kept}, tmp_path / shared.file)
    model = registry.load_video_text_embedder(tiny.spec(tmp_path))
    assert_same(model.embed_videos(tiny.videos(3, frames, SIDE)), golden[f"shared_videos_{frames}"])


def test_texts_are_where_the_original_puts_them(
    model: VideoTextEmbedder, golden: dict[str, npt.NDArray[np.float32]]
) -> None:
    assert_same(model.embed_texts(tiny.SENTENCES), golden["texts"])


def test_the_golden_would_show_a_small_mistake(golden: dict[str, npt.NDArray[np.float32]]) -> None:
    """Videos and sentences are not all in one place, where any model would pass."""
    for name in ("videos_4", "texts"):
        cosines = unit(golden[name]) @ unit(golden[name]).T
        assert cosines[np.triu_indices(len(cosines), 1)].min() < 0.7


@pytest.mark.parametrize(("max_batch", "tolerance"), [(None, 0.0), (3, 1e-6)])
def test_a_video_has_the_same_vector_in_any_company(folder: Path, max_batch: int | None, tolerance: float) -> None:
    """By default to the last bit: a run that is resumed batches otherwise and must end with the same table. A larger
    batch on several cores moves last bits by the place in it; on one core, as under Ray, it did not."""
    model = registry.load_video_text_embedder(tiny.spec(folder, max_batch=max_batch))
    videos = tiny.videos(5, 4, SIDE)
    alone = np.concatenate([model.embed_videos(video[None]) for video in videos])
    assert np.abs(model.embed_videos(videos) - alone).max() <= tolerance
    assert np.abs(model.embed_videos(videos[::-1])[::-1] - alone).max() <= tolerance
    assert model.embed_videos(videos[:0]).shape == (0, model.dim)


def test_a_sentence_has_the_same_vector_in_any_company(model: VideoTextEmbedder) -> None:
    alone = np.concatenate([model.embed_texts([sentence]) for sentence in tiny.SENTENCES])
    assert np.array_equal(model.embed_texts(tiny.SENTENCES), alone)
    assert model.embed_texts([]).shape == (0, model.dim)


def test_the_order_of_the_frames_counts(model: VideoTextEmbedder) -> None:
    videos = tiny.videos(1, 4, SIDE)
    assert np.abs(model.embed_videos(videos) - model.embed_videos(videos[:, ::-1])).max() > 0.01


def test_punctuation_and_case_do_not_count(model: VideoTextEmbedder) -> None:
    assert np.array_equal(model.embed_texts(["A sci-fi show: Dog."]), model.embed_texts(["a sci fi show dog"]))


def test_frames_may_be_read_only(model: VideoTextEmbedder) -> None:
    """As they are when they come through Ray's object store."""
    videos = tiny.videos(1, 4, SIDE)
    videos.flags.writeable = False
    model.embed_videos(videos)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_half_precision_is_near(folder: Path, model: VideoTextEmbedder, dtype: str, tolerance: float) -> None:
    half = registry.load_video_text_embedder(tiny.spec(folder, dtype=dtype, max_batch=3))
    videos = tiny.videos(3, 4, SIDE)
    assert half.max_batch == 3
    for ours, exact in (
        (half.embed_videos(videos), model.embed_videos(videos)),
        (half.embed_texts(tiny.SENTENCES), model.embed_texts(tiny.SENTENCES)),
    ):
        assert ours.dtype == np.float32 and not np.array_equal(ours, exact)
        assert np.linalg.norm(ours - exact, axis=-1).max() < tolerance


def test_videos_that_do_not_fit_say_what_to_set(
    folder: Path, model: VideoTextEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pipeline.models.internvideo2.model.InternVideo2.videos", full)
    with pytest.raises(UserError, match=r"no room on the GPU for 1 videos of 4 frames at once; lower its option max_b"):
        model.embed_videos(tiny.videos(1, 4, SIDE))
    on_cpu = registry.load_video_text_embedder(tiny.spec(folder))
    assert on_cpu.embed_texts(["dog"]).shape == (1, on_cpu.dim), "for sentences alone no video is embedded"


def test_without_a_reserved_gpu_it_computes_on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = registry.load_video_text_embedder(tiny.spec(folder, device="auto"))
    assert found.embed_texts(["dog"]).shape == (1, found.dim)


@pytest.mark.gpu
def test_what_does_not_fit_the_gpu_shows_when_the_model_is_loaded(folder: Path) -> None:
    with pytest.raises(UserError, match="no room on the GPU for 100000000 videos"):
        registry.load_video_text_embedder(tiny.spec(folder, device="cuda", max_batch=100_000_000))


def test_the_card_needs_neither_weights_nor_a_folder() -> None:
    spec = ModelSpec(family="internvideo2", name=PUBLISHED_1B, options={"gpus": 1, "replicas": 2})
    card = registry.card("video_text_embedder", spec)
    assert FrameSpec.from_json(card.frame_spec) == FrameSpec(width=224, height=224, resize="stretch")
    assert (card.frames, card.gpus, card.replicas) == (4, 1, 2)


def test_frames_are_at_most_one_apart_from_the_original_ones() -> None:
    """The `sample` job divides a video by time. The original's evaluation divides the numbers of its frames into equal
    ranges, cut to whole numbers, and takes each range's middle."""
    for frames in range(4, 3000):
        bounds = [frames * i // 4 for i in range(5)]
        theirs = [(first + after - 1) // 2 for first, after in itertools.pairwise(bounds)]
        ours = [moment // 100 for moment in _moments(0, 100 * frames, 4)]  # a frame is shown for 100 ticks
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1


def test_only_what_decides_results_is_in_the_identity(folder: Path) -> None:
    def identity(**options: object) -> dict[str, str]:
        return registry.identity("video_text_embedder", tiny.spec(folder, **options))

    assert identity() == identity(device="cpu", max_batch=2, gpus=1, replicas=3, text_path="/elsewhere")
    assert identity() != identity(dtype="bfloat16") != identity(text_revision="0" * 40)


def test_a_wrong_option_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="did you mean dtype"):
        registry.card("video_text_embedder", tiny.spec(folder, dtyp="float16"))


def test_there_are_no_variants(folder: Path) -> None:
    with pytest.raises(UserError, match="no variants"):
        registry.card("video_text_embedder", dataclasses.replace(tiny.spec(folder), variant="class_token"))


def test_a_model_that_is_not_published_must_say_how_large_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the published ones are OpenGVLab/InternVideo2-Stage2_1B"):
        registry.card("video_text_embedder", ModelSpec(family="internvideo2", name="mine"))
    with pytest.raises(UserError, match=f"no {SIZE_FILE}"):
        registry.card("video_text_embedder", tiny.spec(tmp_path))
    assert "no internvideo2.json" in "".join(registry.lacks("video_text_embedder", tiny.spec(tmp_path)))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [({"heads": 5}, "vision.width by vision.heads"), ({"depth": "3"}, "vision.depth"), ({"layers": 3}, "layers")],
)
def test_a_wrong_size_is_named(tmp_path: Path, changed: dict[str, object], complaint: str) -> None:
    tiny.write_size(tmp_path, tiny.TINY, vision=changed)
    with pytest.raises(UserError, match=complaint):
        registry.card("video_text_embedder", tiny.spec(tmp_path))


def test_what_is_missing_is_said_before_loading(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert registry.lacks("video_text_embedder", tiny.spec(folder)) == []
    revision = "4362e1f88a992e7edbfd7696f7f78b7f79426dfd"
    lines = registry.lacks(
        "video_text_embedder", ModelSpec(family="internvideo2", name=PUBLISHED_1B, revision=revision)
    )
    assert len(lines) == 2
    assert f"hf download {PUBLISHED_1B} --revision {revision}" in lines[0]
    assert "hf download google-bert/bert-large-uncased" in lines[1] and "text_path" in lines[1]


def test_a_vocabulary_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[CLS]\ndog\n")
    with pytest.raises(UserError, match=r"3 word pieces; expected BERT's \d+"):
        registry.load_video_text_embedder(tiny.spec(folder, text_path=str(tmp_path)))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"has no vocab\.txt .*text_path"):
        registry.load_video_text_embedder(tiny.spec(folder, text_path=str(tmp_path)))
