from __future__ import annotations

import os

import pytest

from pipeline.media.open import local_path
from pipeline.sources.uri import BadPlace, base_name, key_text, resolve, without_query


@pytest.mark.parametrize(
    "name",
    [
        b"plain.mp4",
        b"with space.mp4",
        b"a'b\"c.mp4",
        "h\u00e9.mp4".encode(),
        b"a\nb\r\t.mp4",
        b"\xff\xfe.mp4",
        b"100%.mp4",
    ],
)
def test_every_name_that_a_disk_can_hold_comes_back_from_its_row(name: bytes) -> None:
    path = os.fsdecode(b"/data/" + name)
    uri = resolve(path, "/elsewhere")
    uri.encode("utf-8")
    assert "\n" not in uri
    assert local_path(uri) == path


@pytest.mark.parametrize(
    ("text", "folder", "uri"),
    [
        ("a.mp4", "/data", "/data/a.mp4"),
        ("../b/a.mp4", "/data/x", "/data/b/a.mp4"),
        ("/abs/a.mp4", "/data", "/abs/a.mp4"),
        ("file:///abs/a%20b.mp4", "/data", "/abs/a b.mp4"),
        ("file://localhost/abs/a%0Ab.mp4", "/data", "file:///abs/a%0Ab.mp4"),
        ("a.mp4", "s3://bucket/dir", "s3://bucket/dir/a.mp4"),
        ("./x/a.mp4", "s3://bucket/dir/", "s3://bucket/dir/x/a.mp4"),
        ("HTTPS://host/a.mp4?sig=1", "/data", "https://host/a.mp4?sig=1"),
    ],
)
def test_a_manifests_path_resolves(text: str, folder: str, uri: str) -> None:
    assert resolve(text, folder) == uri


@pytest.mark.parametrize(
    ("text", "folder", "why"),
    [
        ("ftp://host/a.mp4", "/data", "not supported"),
        ("zip://a.mp4::file:///etc/x.zip", "/data", "not supported"),
        ("s3://bucket/a::file:///etc/passwd", "/data", "chain"),
        ("https://user:secret@host/a.mp4", "/data", "password"),
        ("file://otherhost/a.mp4", "/data", "another machine"),
        ("a\0b.mp4", "/data", "NUL"),
        ("file:///a%00b.mp4", "/data", "NUL"),
        ("a\ud800b.mp4", "/data", "no file name"),
        ("s3://bucket/\udcff.mp4", "/data", "Unicode"),
        ("../up.mp4", "s3://bucket/dir", "below"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_the_reason(text: str, folder: str, why: str) -> None:
    with pytest.raises(BadPlace, match=why) as caught:
        resolve(text, folder)
    str(caught.value).encode("utf-8")
    assert "secret" not in str(caught.value)


def test_keys_of_different_names_differ() -> None:
    names = [
        "a\nb",
        "a\\u000ab",
        "a\\\\u000ab",
        os.fsdecode(b"a\xffb"),
        "a\\xffb",
        "a\u00ffb",
        "x" * 2000 + "1",
        "x" * 2000 + "2",
    ]
    keys = [key_text(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(key.encode("utf-8").isascii() or "\u00ff" in key for key in keys)
    assert max(map(len, keys)) == 1024
    assert key_text("a\\b\n") == "a\\\\b\\u000a"
    assert key_text("name with space & 'quotes'") == "name with space & 'quotes'"


def test_a_signature_stays_out_of_names() -> None:
    url = "https://host/dir/a.mp4?sig=secret"
    assert base_name(url) == "a.mp4"
    assert "secret" not in without_query(url)
    assert without_query(url) != without_query(url + "2")
    assert without_query("s3://bucket/what?.mp4") == "s3://bucket/what?.mp4"
