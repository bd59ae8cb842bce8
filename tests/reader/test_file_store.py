"""Reading files that hang, that cannot be decoded, or that this user may not read."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

import optimizer.reader.file_store
import optimizer.reader.results
from optimizer import Settings, SnapshotMissing, SnapshotReader, optimize
from tests.support.published_state import as_unprivileged, run_next, run_old, version_of
from tests.support.readers import Open, shows
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, local, write_json


def test_a_file_system_that_hangs_does_not_hold_up_redis(
    settings: Settings, open_reader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the files hang, a reader continues to refresh and shows new versions of Redis. Opening a FIFO hangs.

    Once the files answer again, the reader shows a newer version that only they have.
    """
    monkeypatch.setattr(optimizer.reader.file_store, "FILES_TIMEOUT_S", 0.1)
    run_old(settings)
    hanging = replace(settings, output_dir=local(settings.output_dir).parent / "hanging")
    directory = local(hanging.output_dir) / "current"
    directory.mkdir(parents=True)
    os.mkfifo(directory / "manifest.json")
    reader = open_reader(hanging)
    try:
        for _ in range(3):
            version = version_of(run_next(settings))
            wait_until(partial(shows, reader, version), limit_s=5, what="the new version")
            assert reader.predictions().origin == "redis"
        directory = directory.rename(directory.with_name("left"))
        newest = version_of(run_next(hanging, use_cache=False))
    finally:
        (directory / "manifest.json").open("wb").close()  # ends the read that hangs
    wait_until(partial(shows, reader, newest), limit_s=5, what="the version of the files")
    assert reader.predictions().origin == "files"


def test_files_that_cannot_be_decoded_are_a_missing_snapshot(
    settings_without_redis: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the files cannot be decoded, a reader raises `SnapshotMissing` and nothing else."""
    write_json(settings_without_redis.input, {"AAPL": a_record()})
    optimize(settings_without_redis, use_cache=False)
    monkeypatch.setitem(optimizer.reader.results._DECODERS, "portfolio", msgspec.json.Decoder(int).decode)
    reader = SnapshotReader("redis://127.0.0.1:1/0", "rolling_brain", settings_without_redis.output_dir)
    with closing(reader), pytest.raises(SnapshotMissing, match="cannot be read"):
        reader.portfolio()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("name", ["manifest.json", "rolling_optimized.json.gz"])
def test_files_that_may_not_be_read_are_not_taken_for_none(
    settings_without_redis: Settings, open_reader: Open, name: str
) -> None:
    """If this user may not read a file, as after a worker's umask of 077, the error has the reason and the path."""
    place = Path(tempfile.mkdtemp(prefix="rolling-"))
    try:
        place.chmod(0o755)
        settings = replace(settings_without_redis, output_dir=place / "out")
        run_old(settings, use_cache=False)
        path = (place / "out" / "current" / name).resolve()
        path.chmod(0o600)
        with as_unprivileged():
            reader = open_reader(settings, "files")
            with pytest.raises(SnapshotMissing, match=rf"permission denied: {place}/out/\S+/{name}"):
                reader.predictions()
    finally:
        shutil.rmtree(place)
