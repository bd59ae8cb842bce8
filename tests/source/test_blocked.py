"""Blocked gzip that is inflated on several threads gives the same bytes, or the same error, as the single stream."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.errors import SourceError, SourceTorn
from optimizer.source import blocked as module
from optimizer.source.blocked import JOB_BYTES, MAX_MEMBER_BYTES, blocked_stream, member_bytes
from optimizer.source.input_file import InputFile
from optimizer.storage.location import Location
from tests.support.blocked import BGZF_END, FCOMMENT, FHCRC, FNAME, KINDS, blocked, member
from tests.support.examples import examples
from tests.support.redis_servers import wait_until

CHUNK_BYTES = 64 * 1024
THREADS = 3
JSON = b'{"AAPL":{"prediction":1,"confidence":0.9,"last_price":3,"history":[1,2,{"note":"\\"]"}]}}'


@cache
def noise(count: int, seed: int = 1) -> bytes:
    """Bytes that compress about 2:1."""
    return random.Random(seed).randbytes(count // 2).hex().encode()


class Held(io.BytesIO):
    """A file in memory, as a `ByteReader`."""

    path: Location = Path("rolling.json.gz")
    fingerprint = ""

    @property
    def size_bytes(self) -> int:
        """The length of the file."""
        return len(self.getvalue())

    modified_s = landed_s = None

    def check_unchanged(self) -> None:
        """Do nothing, since the file never changes."""


def outcome(packed: bytes, threads: int = THREADS, chunk_bytes: int = CHUNK_BYTES) -> tuple[bytes, str]:
    """The JSON of a file, and the text of the error that ends it, empty if there is none."""
    json = bytearray()
    with InputFile(Held(packed)) as file:
        try:
            for chunk in file.chunks(chunk_bytes, threads=threads):
                assert 0 < len(chunk) <= (MAX_MEMBER_BYTES if threads > 1 else chunk_bytes)
                json += chunk
        except SourceError as error:
            return bytes(json), f"{type(error).__name__}: {error}"
        assert file.position_bytes == file.size_bytes
    return bytes(json), ""


def gunzip(packed: bytes) -> bytes | None:
    """Inflate a file by the standard library; return `None` for an error."""
    try:
        return gzip.decompress(packed)
    except (EOFError, OSError, zlib.error):
        return None


def check(packed: bytes) -> bool:
    """Check that the standard library, one thread and several threads agree; return whether they accept the file."""
    expected = gunzip(packed)
    json, error = outcome(packed)
    single, single_error = outcome(packed, threads=1)
    if expected is None:
        assert error
    elif "Corrupted gzip header" in single_error:  # a wrong FHCRC, which the standard library does not check
        assert expected.startswith(json)
    else:
        assert (json, error) == (expected, "")
    assert json.startswith(single) or single.startswith(json)
    # The number of bytes before an error depends on the chunks; the rest of the message does not.
    assert error.partition(" bytes of JSON")[2] == single_error.partition(" bytes of JSON")[2]
    return not error


class Jobs:
    """A counter of the jobs that are inflated whole, and of the jobs that fail, within its `with` block."""

    def __init__(self) -> None:
        self.whole = self.failed = 0

    def __enter__(self) -> Jobs:
        self._patch = pytest.MonkeyPatch()
        inflate = module._inflate

        def counted(job: module._Job, buffer: memoryview) -> memoryview | None:
            json = inflate(job, buffer)
            self.whole += json is not None
            self.failed += json is None
            return json

        self._patch.setattr(module, "_inflate", counted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.undo()


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """Check after each test that the threads have ended, however the iteration ended."""
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("inflate")]


class TestFormats:
    """Blocked gzip is recognised by the headers of its members."""

    @pytest.mark.parametrize("flags", [0, FNAME])
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_size_is_in_the_header(self, kind: str, flags: int) -> None:
        """The size of a member is read from its header, with or without a file name after it."""
        packed = member(JSON, kind, flags=flags)

        assert member_bytes(packed) == len(packed)
        assert member_bytes(b"xyz" + packed + packed, 3) == len(packed)
        assert check(packed * 3)

    @pytest.mark.parametrize(
        ("kind", "written"),
        [
            # The first bytes of what mgzip 0.2.5, pgzip 0.4.0 and bgzip 1.16 write.
            ("mgzip", "1f8b080c6927096b02ff08004d5a0400ac000000782e6a736f6e00" + "00" * (172 + 8)),
            ("pgzip", "1f8b080c6927096b02ff080049470400cf000000782e6a736f6e00" + "00" * (207 - 27)),
            ("bgzip", "1f8b08040000000000ff0600424302002600" + "00" * (39 - 18)),
        ],
    )
    def test_as_the_programs_write_them(self, kind: str, written: str) -> None:
        """The size of a member is read from the headers that mgzip 0.2.5, pgzip 0.4.0 and bgzip 1.16 write."""
        packed = bytes.fromhex(written)

        assert member_bytes(packed) == len(packed), kind

    @pytest.mark.parametrize(
        "packed",
        [
            b"",
            gzip.compress(JSON),
            member(JSON, "", before=b"AB\x02\x00xy"),
            member(JSON, "MZ", before=b"IG\x04\x00\x90\x00\x00\x00"),  # two sizes
            member(JSON, "", before=b"MZ\x02\x00xy"),  # of another width
            member(JSON, "", before=b"MZ\x05\x00\x40\x00"),  # longer than the extra field
            member(JSON, "MZ").replace(b"\x1f\x8b\x08\x04", b"\x1f\x8b\x08\x24"),  # a reserved flag
            member(JSON, "IG", error=-90),  # smaller than its header
            member(JSON, "MZ", flags=FNAME)[:30],
            member(JSON, "MZ", before=b"AB\x02\x00xy"),
            member(JSON, "MZ", flags=FCOMMENT),
            member(JSON, "IG", flags=FHCRC),
            member(JSON, "MZ", flags=FNAME).replace(b"rolling", b"rolling" * 100),  # too long a name
        ],
    )
    def test_others_are_a_single_stream(self, packed: bytes) -> None:
        """A member without a valid size in its header, or with anything beside the size, is read as a single stream."""
        assert member_bytes(packed) == 0
        with Jobs() as jobs:
            check(packed)
        assert jobs.whole + jobs.failed == 0

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("block_bytes", [500, 60_000])
    def test_members_are_grouped(self, kind: str, block_bytes: int) -> None:
        """Members are grouped in order into jobs of about a megabyte of JSON, or of compressed bytes.

        5 MiB of JSON make 5 to 7 jobs, none of which fails.
        """
        data = noise(5 * JOB_BYTES)
        with Jobs() as jobs:
            assert outcome(blocked(data, kind, block_bytes)) == (data, "")
        assert 5 <= jobs.whole <= 7
        assert not jobs.failed

    def test_empty_members(self) -> None:
        """100,000 empty members (bgzip's last block) give no JSON and are not held at once: they make three jobs."""
        with Jobs() as jobs:
            assert outcome(member(JSON, "BC") + BGZF_END * 100_000 + member(b" ", "BC")) == (JSON + b" ", "")
        assert jobs.whole == 3


class TestTheSingleStreamGoesOn:
    """From a member on that is not blocked gzip, or states a wrong size, a file is read like any gzip file."""

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("error", [-9, -1, 1, 8, 40, 10_000])
    @pytest.mark.parametrize("place", [0, 3, 39])
    def test_a_wrong_size(self, kind: str, error: int, place: int) -> None:
        """A file in which one member states a wrong size is read whole, since its data and checksums are right."""
        pieces = [noise(60_000, seed) for seed in range(40)]
        members = [member(piece, kind, error=error * (number == place)) for number, piece in enumerate(pieces)]

        assert check(b"".join(members))

    def test_a_size_that_spans_two_members(self) -> None:
        """A file in which a member states a size that spans the next member too is read whole.

        The length in the trailer of the second member is not the length of both; the jobs after them are not lost.
        """
        second = member(JSON, "MZ")
        assert check(member(b"[   ", "MZ", error=len(second)) + second + blocked(noise(4 * JOB_BYTES), level=1))

    @pytest.mark.parametrize(
        "other",
        [gzip.compress(JSON), member(JSON, "MZ", flags=FHCRC), member(bytes(MAX_MEMBER_BYTES + 1), "MZ")],
        ids=["plain", "with a checksum of its header", "large"],
    )
    @pytest.mark.parametrize("place", [0, 1, 7])
    def test_another_member_amid(self, other: bytes, place: int) -> None:
        """A file is read whole if a member at any place has no size, or a header of another form, or is too large."""
        members = [member(noise(300_000, seed), "MZ") for seed in range(8)]

        assert check(b"".join((*members[:place], other, *members[place:])))

    @pytest.mark.parametrize("zeros", [1, 8, 511, 600_000])
    def test_zero_padding(self, zeros: int) -> None:
        """Zero bytes between members, and after the last one, are skipped."""
        packed = member(noise(100_000), "MZ") + bytes(zeros)

        assert check(packed * 3)

    @pytest.mark.parametrize("length", [0, 1, 1 << 20, MAX_MEMBER_BYTES, (1 << 32) - 1])
    def test_a_length_that_is_wrong(self, length: int) -> None:
        """A wrong length in a member's trailer is `SourceTorn`.

        The length limits the memory for the member's JSON; the single stream then reports that it is wrong.
        """
        good = member(noise(100_000), "MZ")
        packed = good + good[:-4] + length.to_bytes(4, "little") + good

        assert not check(packed)
        assert "SourceTorn: after" in outcome(packed)[1]

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda packed: packed[:-1], "ends early"),
            (lambda packed: packed[:-8], "ends early"),
            (lambda packed: packed + b"\x1f", "ends early"),
            (lambda packed: packed + packed[:20], "ends early"),
            (lambda packed: packed[:-8] + bytes(4) + packed[-4:], "check failed.*CRC"),
            (lambda packed: packed[:200_000] + b"\0" + packed[200_001:], "damaged|CRC"),
            (lambda packed: packed + b"trailing junk", r"ends at byte [0-9,]+ .*no gzip: b'trailing junk'"),
            (lambda packed: packed + bytes(600) + b"\n", r"ends at byte [0-9,]+ .*no gzip: b'\\n'"),
        ],
    )
    def test_what_is_wrong_is_told(self, damage: Callable[[bytes], bytes], message: str) -> None:
        """A damaged file is `SourceTorn` with the message of the single stream.

        The message has the cause, and the number of bytes of JSON before the damage.
        """
        packed = damage(blocked(noise(3 * JOB_BYTES)))
        assert not check(packed)
        with pytest.raises(SourceTorn, match=rf"after [0-9,]+ bytes of JSON.*(?:{message})"):
            list(InputFile(Held(packed)).chunks(CHUNK_BYTES, threads=THREADS))


# Members of a few bytes, or of more than a chunk, with all fields that a header may have.
_members = st.builds(
    member,
    st.one_of(st.binary(max_size=60), st.integers(1, 150_000).map(noise)),
    st.sampled_from([*KINDS, *KINDS, ""]),
    flags=st.sampled_from([0, 0, FNAME, FHCRC, FNAME | FCOMMENT | FHCRC]),
    before=st.sampled_from([b"", b"", b"AB\x02\x00xy"]),
    level=st.sampled_from([0, 1, 6]),
    error=st.sampled_from([0, 0, 0, 0, -1, 1, 8, 28, -20, 1000]),
)


@hypothesis_settings(max_examples=examples(150))
@given(st.lists(_members, min_size=1, max_size=12), st.data())
def test_damaged_files_are_those_of_gunzip(members: list[bytes], data: st.DataObject) -> None:
    """A damaged file gives the same JSON as gunzip, or an error where gunzip has one or a header's checksum is wrong.

    Damage is a flipped bit, a member that is cut, doubled, swapped or dropped, or bytes between members. Most jobs are
    small here, so that there are jobs before and after the damage.
    """
    members = [member(b'["', "MZ"), *members]  # so that it is blocked, and does not begin like another format
    for _ in range(data.draw(st.integers(0, 2), "changes")):
        place = data.draw(st.integers(1, len(members) - 1), "member")
        change = data.draw(st.sampled_from(["flip", "cut", "double", "swap", "between", "drop"]), "change")
        changed = members[place]
        if change == "flip" and changed:
            # Most of these bits are in the header or the trailer.
            byte = data.draw(st.one_of(st.integers(0, 19), st.integers(-12, -1), st.integers()), "byte") % len(changed)
            flipped = changed[byte] ^ (1 << data.draw(st.integers(0, 7), "bit"))
            members[place] = changed[:byte] + bytes([flipped]) + changed[byte + 1 :]
        elif change == "cut":
            members[place] = changed[: data.draw(st.integers(0, len(changed)), "end")]
        elif change == "double":
            members.insert(place, changed)
        elif change == "swap":
            other = data.draw(st.integers(1, len(members) - 1), "other")
            members[place], members[other] = members[other], changed
        elif change == "between":
            members.insert(place, data.draw(st.one_of(st.binary(max_size=30), st.integers(0, 600).map(bytes)), "bytes"))
        elif change == "drop" and len(members) > 2:
            del members[place]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "JOB_BYTES", data.draw(st.sampled_from([100, 10_000, JOB_BYTES]), "job"))
        check(b"".join(members))


class TestMemory:
    """Memory is limited, and a chunk that the caller keeps is never written to."""

    def test_chunks_stay_as_they_are(self) -> None:
        """A chunk that the caller keeps is not written to, however many chunks follow it."""
        data = noise(20 * JOB_BYTES)
        with closing(blocked_stream(io.BytesIO(blocked(data, level=1)), 300_000, THREADS)) as chunks:
            assert b"".join(list(chunks)) == data

    @pytest.mark.slow
    def test_memory_is_used_again(self) -> None:
        """Buffers are reused if the caller keeps no chunk.

        There is at most one for the JSON of each waiting job and one for the caller's chunk, and as many again for
        compressed bytes.
        """
        data, buffers = noise(30 * JOB_BYTES), module._Buffers()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_Buffers", lambda: buffers)
            assert outcome(blocked(data, level=1)) == (data, "")
        assert len(buffers._all) <= 2 * (THREADS + 2)

    @pytest.mark.slow
    @pytest.mark.parametrize("stated", [None, 100_000], ids=["the truth", "a lie"])
    def test_a_bomb(self, stated: int | None, tmp_path: Path) -> None:
        """A member of 130 KB that inflates to 134 MB takes less than 8 MB more memory than with one thread.

        This holds whatever length the member's trailer states.
        """
        packed = member(b"[" + b" " * (1 << 27), "MZ", level=6)
        path = tmp_path / "a.json.gz"
        path.write_bytes(packed if stated is None else packed[:-4] + stated.to_bytes(4, "little"))
        del packed
        grown, threads = _growth_mb(path), 4

        assert path.stat().st_size < 140_000
        assert grown(threads) < 8 + grown(1)

    @pytest.mark.slow
    @pytest.mark.parametrize("block_bytes", [64_000, 1 << 20, MAX_MEMBER_BYTES])
    def test_of_many_threads(self, block_bytes: int, tmp_path: Path) -> None:
        """On 64 cores, data that does not compress takes less than 32 MB more memory than with one thread.

        However many cores there are, at most `MAX_THREADS` threads inflate.
        """
        path = tmp_path / "a.json.gz"
        path.write_bytes(blocked(b"[" + os.urandom(80_000_000), "MZ", block_bytes, level=0))
        grown = _growth_mb(path)

        assert grown(64) < 32 + grown(1)


def _growth_mb(path: Path) -> partial[float]:
    return partial(_peak_mb, path)


_PEAK = """
import sys
from pathlib import Path
from optimizer.errors import SourceTorn
from optimizer.pipeline.process import peak_rss_mb
from optimizer.source.opener import open_input_file
from optimizer.source.read_ahead import read_ahead
with open_input_file(Path(sys.argv[1])) as file:
    try:
        with read_ahead(file.chunks(768 * 1024, threads=int(sys.argv[2]))) as chunks:
            for chunk in chunks: pass
    except SourceTorn:
        pass
print(peak_rss_mb())
"""


def _peak_mb(path: Path, threads: int) -> float:
    done = subprocess.run([sys.executable, "-c", _PEAK, path, str(threads)], stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


class Broken(io.RawIOBase):
    """A file whose disk fails after `good_bytes`."""

    def __init__(self, data: bytes, good_bytes: int) -> None:
        self._file, self._good_bytes = io.BytesIO(data), good_bytes

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer; raise `OSError` after the good bytes."""
        if self._file.tell() >= self._good_bytes:
            raise OSError(5, "Input/output error")
        return self._file.readinto(buffer)


class TestThreads:
    """An error is raised after the JSON before it, and no thread remains."""

    def test_a_read_that_fails(self) -> None:
        """An error of the disk is raised; the fixture checks that the threads have ended."""
        with pytest.raises(OSError, match="Input/output error"):
            list(blocked_stream(Broken(blocked(noise(20 * JOB_BYTES), level=1), 4_000_000), CHUNK_BYTES, THREADS))

    def test_a_thread_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error in a thread is raised after the JSON of the jobs before it."""
        inflate, data, failing = module._inflate, noise(9 * JOB_BYTES), blocked(noise(JOB_BYTES, 2), level=1)

        def fails(job: module._Job, buffer: memoryview) -> memoryview | None:
            if job.packed == failing:
                raise MemoryError
            return inflate(job, buffer)

        monkeypatch.setattr(module, "_inflate", fails)
        packed = blocked(data, level=1)
        seen: list[bytes] = []
        with pytest.raises(MemoryError), closing(_stream(packed + failing + packed)) as chunks:
            seen.extend(bytes(chunk) for chunk in chunks)
        assert b"".join(seen) == data

    @pytest.mark.slow
    @pytest.mark.parametrize("taken", [0, 1, 5])
    def test_stopping_early(self, taken: int) -> None:
        """When the caller stops early, all threads end, and each has inflated at most one job that was not taken."""
        before = threading.active_count()
        with Jobs() as jobs, closing(_stream(blocked(noise(20 * JOB_BYTES), level=1))) as chunks:
            for _ in range(taken):
                next(chunks)
            assert taken == 0 or threading.active_count() > before
        assert taken <= jobs.whole <= taken + THREADS
        wait_until(lambda: threading.active_count() == before, what="the threads to end")


def _stream(packed: bytes) -> Generator[bytes | memoryview]:
    return blocked_stream(io.BytesIO(packed), CHUNK_BYTES, THREADS)
