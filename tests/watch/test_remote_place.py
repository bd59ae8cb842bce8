"""Inputs by URL: each version is noticed by the tag that the store or server gives it, without reading the content."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from optimizer.errors import SourceUnreadable
from optimizer.source.opener import fingerprints, open_input_file
from optimizer.storage.location import Url
from optimizer.watch.remote_place import RemotePlace
from tests.support.s3_server import S3Server
from tests.support.web_server import serving


def place_of(url: Url) -> RemotePlace:
    """Return a place whose interval of 2 s no test waits for."""
    return RemotePlace(url, 2.0, threading.Event())


@pytest.mark.slow
def test_objects_of_a_store(s3: S3Server, tmp_path: Path) -> None:
    """An object, and the parts of a pattern, are noticed when they are put, replaced and deleted; each is whole.

    The fingerprint without reading equals the fingerprint of the opened object.
    """
    root = s3.bucket / tmp_path.name
    one, pattern = place_of(root / "a.json"), place_of(root / "*.json")
    assert one.look() == pattern.look() == {}
    versions = []
    for content in (b"{}", b"[]"):
        s3.put(root / "a.json", content)
        assert one.look() == pattern.look()
        (seen,) = one.look().values()
        assert seen.is_whole
        versions.append(seen.version)
    assert len(set(versions)) == 2
    s3.put(root / "b.json", b"{}")
    assert len(pattern.look()) == 2
    with open_input_file(root / "b.json") as file:
        assert fingerprints(root / "*.json")[str(root / "b.json")] == file.fingerprint
    s3.behind.rm((root / "a.json").text)
    assert (len(one.look()), len(pattern.look())) == (0, 1)


def test_a_file_on_the_web() -> None:
    """A file on the web has a new version by its ETag, is absent at a 404, and is an error at a 500."""
    with serving() as pages:
        place = place_of(Url(f"{pages.url}/a.json"))
        versions = set()
        for data in (b"{}", b"[]"):
            pages.data = data
            (seen,) = place.look().values()
            versions.add(seen.version)
        assert len(versions) == 2
        pages.status = 404
        assert place.look() == {}
        pages.status = 500
        with pytest.raises(SourceUnreadable, match="500"):
            place.look()
