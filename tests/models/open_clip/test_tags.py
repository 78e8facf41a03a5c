"""Reading open_clip's tables from its files, against open_clip itself."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.models.open_clip import tags as open_clip_tags
from pipeline.stage import UserError

pytestmark = pytest.mark.skipif(find_spec("open_clip") is None, reason="needs the extra models")


def test_every_architecture_and_tag_is_read_as_open_clip_has_it() -> None:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    assert sorted(open_clip.list_models()) == list(open_clip_tags.architectures())
    pairs = [(name, tag) for name in open_clip_tags.architectures() for tag in open_clip_tags.tags(name)]
    assert sorted(pairs) == sorted(open_clip.list_pretrained())
    for name, tag in pairs:
        ours, theirs = open_clip_tags.tags(name)[tag], get_pretrained_cfg(name, tag)
        assert f"{ours.repo}/{ours.filename}" == theirs["hf_hub"]
        assert ours.quick_gelu == theirs.get("quick_gelu", False)
        assert ours.preprocess == {key: theirs[key] for key in ours.preprocess}


def test_an_architecture_is_read_as_open_clip_has_it() -> None:
    import open_clip

    for name in open_clip_tags.architectures():
        assert open_clip_tags.architecture(name) == open_clip.get_model_config(name)


def test_openais_weights_were_trained_with_quick_gelu_though_the_architecture_has_gelu() -> None:
    assert open_clip_tags.tags("ViT-L-14-336")["openai"].quick_gelu
    assert "quick_gelu" not in open_clip_tags.architecture("ViT-L-14-336")


def test_a_table_in_another_form_is_the_users_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constants.py").write_text("MEAN = (0.5, 0.5, 0.5)\n")
    (tmp_path / "pretrained.py").write_text("_PRETRAINED = load_from_somewhere_else('tags')\n")
    monkeypatch.setattr(open_clip_tags, "_package", lambda: tmp_path)
    with pytest.raises(UserError, match=r"of an unknown version; run: pip install 'open_clip_torch"):
        open_clip_tags._table.__wrapped__()
