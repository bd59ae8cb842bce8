"""The path by which messages name a file that is being written."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.storage.durable import partial_link, shown_path


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/in/.rolling.json.gz.0a1b2c3d4e5f6071.partial", "/in/rolling.json.gz"),
        (
            "/out/versions/1795000000000.0a1b2c3d4e5f6071.partial/manifest.json",
            "/out/versions/1795000000000/manifest.json",
        ),
        (".a.json.partial", "a.json"),
        ("/in/rolling.json.gz", "/in/rolling.json.gz"),
        ("/in/.hidden/x.partial.json", "/in/.hidden/x.partial.json"),
    ],
)
def test_a_path_is_shown_as_it_will_be(path: str, shown: str) -> None:
    """A temporary name, which no user has set, is shown as the final path; other paths stay as they are."""
    assert shown_path(path) == shown


def test_the_link_of_a_replacement_is_shown_as_the_link() -> None:
    """The temporary link, which `replace_link` makes before its rename, is shown as the final link."""
    assert shown_path(partial_link(Path("/out/current"))) == "/out/current"
