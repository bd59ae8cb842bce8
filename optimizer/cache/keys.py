"""The key schema: the name, type, writer and expiry of every key of a source in Redis.

`{S}` is the source's name in braces: a hash tag, so that all keys of a source are in one slot of a Redis Cluster.
`V` is a version, strictly rising: milliseconds since the epoch, or the last version plus one if the clock went back.

| key                       | type    | meaning, and who writes it                          | expiry             |
|---------------------------|---------|-----------------------------------------------------|--------------------|
| rolling:{S}:current       | HASH    | the pointer: version, checked_at, manifest (the     | never              |
|                           |         | bytes of manifest.json); replaced by a publish,     |                    |
|                           |         | of equal content and by `unpin` the manifest alone; |                    |
|                           |         | checked_at is set by each tick, by Redis' own clock |                    |
| rolling:{S}:flipped       | HASH    | version: what the last publish made current; token: | never              |
|                           |         | its run's. Known though the pointer is lost         |                    |
| rolling:{S}:V:predictions | STRING  | the gz bytes of the file; immutable once published  | 120 s after the    |
| rolling:{S}:V:bots        | STRING  | the same                                            | next version, 5 s  |
| rolling:{S}:V:portfolio   | STRING  | the same                                            | if of updates; the |
| rolling:{S}:V:symbols     | HASH    | symbol -> JSON record, the whole index              | current one never  |
| rolling:{S}:V:ranking     | ZSET    | symbol by confidence, the same symbols              |                    |
| rolling:{S}:staged:T:*    |         | the five above, and `updates`, before the flip, and | 180 s              |
|                           |         | `seal`, written last; T is a run's token, or that   |                    |
|                           |         | in `publishing`                                     |                    |
| rolling:{S}:deltas        | STREAM  | id V-0: what a publish changed in predictions, bots | the newest 120, of |
|                           |         | and holdings (gz JSON, in the field `change`; `end` | at most 8 MiB      |
|                           |         | is the bytes of all changes up to it)               |                    |
| rolling:{S}:runs          | STREAM  | one report a run (JSON, in the field `report`)      | about a day        |
| rolling:{S}:scans         | STREAM  | the same for each run that has published a scan     | the newest 100     |
| rolling:{S}:outcomes      | HASH    | status, and the error's name after a space -> the   | never              |
|                           |         | number of runs that ended so, as of the stream of   |                    |
|                           |         | runs, with whose entry each is counted              |                    |
| rolling:{S}:reads:O       | STRING  | the number of HTTP responses from origin O (redis,  | never              |
|                           |         | files), of all processes that serve; each adds to   |                    |
|                           |         | it, if it may                                       |                    |
| rolling:{S}:lock          | STRING  | the token of the run that may publish               | 10 s, extended     |
| rolling:{S}:handed        | HASH    | a dispatched run that has not ended: token,         | ten intervals,     |
|                           |         | assignment (JSON); deleted at its end               | renewed by scans   |
| rolling:{S}:queue         | LIST    | updates that were accepted and are not applied yet, | never              |
|                           |         | oldest first (JSON); a flip removes what it applies |                    |
| rolling:{S}:queued        | HASH    | of the queue: the numbers of the newest entry and   | never              |
|                           |         | of the last one applied, the records that wait, the |                    |
|                           |         | pace, and the last entries that a guard has refused |                    |
| rolling:{S}:accepted:T    | STRING  | the number of the entry of the call with token T,   | 15 s; of a message |
|                           |         | at random or a digest of a message's id             | the visibility     |
|                           |         |                                                     | timeout, and 60 s  |
| rolling:{S}:draining      | STRING  | a drain of the queue is on, or on its way           | 1 s, extended      |
| rolling:{S}:updates       | HASH    | symbol -> the update in force (JSON); changed by  | never              |
|                           |         | flips alone, so it is of the pointer's version      |                    |
| rolling:{S}:publishing    | STRING  | the token of what makes a version from the current  | 10 s, extended     |
|                           |         | one: a drain, or the end of a run                   |                    |
| rolling:{S}:output       | STRING  | the id of the output directory that the runs write  | ten intervals,     |
|                           |         | to, as its file `.output-id` holds it               | renewed by runs    |
| rolling:{S}:revoked:M     | STRING  | a run was revoked; M is what its tokens begin with  | ten intervals      |
| rolling:{S}:part:D        | STRING  | the result of the scan of one part (gz JSON); D is  | an hour, renewed   |
|                           |         | a digest of the part as it was; immutable; deleted  | by each tick       |
|                           |         | when the part is seen to have changed               |                    |
| rolling:{S}:parts         | SET     | the digests of all results that are kept            | never              |
| rolling:{S}:processes     | HASH    | name -> when a worker or a beat told last, in ms by | a day              |
|                           |         | Redis' clock, and what it is (JSON)                 |                    |
| rolling:{S}:tick:N        | STRING  | tick N (time / interval) is taken by a run          | two intervals      |
| rolling:{S}:requested     | STRING  | the run that was last requested over HTTP, its id   | the time limit of  |
|                           |         | and whether it is forced (JSON); in the broker, or  | a run              |
|                           |         | for another Celery app than our own in the cache    |                    |
| rolling:{S}:result:I      | STRING  | for another Celery app: the state of a run that was | 15 minutes, beyond |
|                           |         | requested over HTTP, as Celery's JSON; I is its id  | its time limit     |
| rolling:{S}:probe         | STRING  | written and deleted again by `config` and at the    | 10 s               |
|                           |         | start of a worker, to see whether that works        |                    |
| rolling:{S}:published     | channel | the new version, nothing more; sent by the flip     |                    |

`Keys.fixed` has these types and expiries as data: each run begins by deleting keys of the wrong type, and those that
never expire though they should. The values are checked by the code that reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple, get_args

from optimizer.models import Origin

__all__ = [
    "CHANGES_BYTES",
    "CHANGES_KEPT",
    "NUMBER",
    "ORIGINS",
    "PART",
    "PAYLOAD_KINDS",
    "REVOKED",
    "TICK",
    "VERSION",
    "VERSION_KINDS",
    "VERSION_TYPES",
    "KeyType",
    "Keys",
    "number_of",
    "version_of",
]

PAYLOAD_KINDS: Final = ("predictions", "bots", "portfolio")
ORIGINS: Final[tuple[Origin, ...]] = get_args(Origin)
VERSION_TYPES: Final = {**dict.fromkeys(PAYLOAD_KINDS, "string"), "symbols": "hash", "ranking": "zset"}
VERSION_KINDS: Final = tuple(VERSION_TYPES)

# A version or a count as text, with at most as many digits as the id of a stream: `int` accepts " 1_0" and 10**30 too.
NUMBER: Final = re.compile(r"[0-9]{1,19}", re.ASCII)
# Milliseconds beyond any clock. A longer version is damage: later versions, which rise, would have too many digits.
VERSION: Final = re.compile(r"[0-9]{1,15}", re.ASCII)

# Limits of the stream of changes. If 300 predictions all change, an entry has 15 KB; 17 entries of 10,000 reach the
# limit in bytes.
CHANGES_KEPT: Final = 120
CHANGES_BYTES: Final = 8 * 1024 * 1024


class KeyType(NamedTuple):
    """The type of a key, as the command TYPE names it, and whether it expires."""

    type: str
    expires: bool


TICK: Final = KeyType("string", expires=True)
PART: Final = KeyType("string", expires=True)
REVOKED: Final = KeyType("string", expires=True)


@dataclass(frozen=True)
class Keys:
    """The names of a source's keys."""

    source: str

    def _name(self, *parts: str) -> str:
        return ":".join(("rolling", f"{{{self.source}}}", *parts))

    @property
    def current(self) -> str:
        """The pointer."""
        return self._name("current")

    @property
    def flipped(self) -> str:
        """The version that the last publish made current."""
        return self._name("flipped")

    @property
    def fixed(self) -> dict[str, KeyType]:
        """The keys whose names do not change."""
        lasting = {
            "hash": (self.current, self.flipped, self.outcomes, self.queued, self.updates),
            "list": (self.queue,),
            "string": tuple(self.reads(origin) for origin in ORIGINS),
            "stream": (self.deltas, self.runs, self.scans),
            "set": (self.parts,),
        }
        return {
            **{name: KeyType(kind, expires=False) for kind, names in lasting.items() for name in names},
            self.lock: KeyType("string", expires=True),
            self.handed: KeyType("hash", expires=True),
            self.output: KeyType("string", expires=True),
            self.draining: KeyType("string", expires=True),
            self.publishing: KeyType("string", expires=True),
            self.processes: KeyType("hash", expires=True),
        }

    @property
    def lock(self) -> str:
        """The lock of the run that may publish."""
        return self._name("lock")

    @property
    def handed(self) -> str:
        """The assignment of a dispatched run."""
        return self._name("handed")

    @property
    def queue(self) -> str:
        """The queue of waiting updates."""
        return self._name("queue")

    @property
    def queued(self) -> str:
        """The counters of the queue."""
        return self._name("queued")

    def accepted(self, token: str) -> str:
        """The entry of one call."""
        return self._name("accepted", token)

    @property
    def draining(self) -> str:
        """Exists while the queue is being drained."""
        return self._name("draining")

    @property
    def updates(self) -> str:
        """The updates in force."""
        return self._name("updates")

    @property
    def publishing(self) -> str:
        """The short lock of a process that makes a version from the current one."""
        return self._name("publishing")

    @property
    def output(self) -> str:
        """The id of the output directory that the runs write to."""
        return self._name("output")

    def revoked(self, mark: str) -> str:
        """Exists after a run was revoked; `mark` is the digest of its id."""
        return self._name("revoked", mark)

    @property
    def parts(self) -> str:
        """The digests of all parts whose results are kept."""
        return self._name("parts")

    def part(self, digest: str) -> str:
        """The result of a part."""
        return self._name("part", digest)

    @property
    def processes(self) -> str:
        """The workers and beats of the source."""
        return self._name("processes")

    @property
    def runs(self) -> str:
        """The stream of reports."""
        return self._name("runs")

    @property
    def scans(self) -> str:
        """The stream of reports with the status `success`."""
        return self._name("scans")

    @property
    def outcomes(self) -> str:
        """The number of runs by status and error."""
        return self._name("outcomes")

    def reads(self, origin: str) -> str:
        """The number of HTTP responses from an origin."""
        return self._name("reads", origin)

    @property
    def requested(self) -> str:
        """The run that was last requested over HTTP; in the broker, or for another Celery app in the cache."""
        return self._name("requested")

    def result(self, run_id: str) -> str:
        """The state of a run that was requested over HTTP, for another Celery app."""
        return self._name("result", run_id)

    @property
    def deltas(self) -> str:
        """The stream of changes."""
        return self._name("deltas")

    @property
    def published(self) -> str:
        """The channel of new versions."""
        return self._name("published")

    @property
    def every(self) -> str:
        """A pattern, as `SCAN` takes it, for all keys of the source."""
        return self._name("*").replace("[", "\\[")

    @property
    def probe(self) -> str:
        """Written and deleted again to see whether that is possible."""
        return self._name("probe")

    def tick(self, number: int) -> str:
        """Exists once a tick is taken."""
        return self._name("tick", str(number))

    def payload(self, version: int, kind: str) -> str:
        """One value of a version: a payload kind, `symbols` or `ranking`."""
        return self._name(str(version), kind)

    def staged(self, token: str, kind: str) -> str:
        """The same value before it is published."""
        return self._name("staged", token, kind)


def number_of(text: bytes | None, pattern: re.Pattern[str] = NUMBER) -> int:
    """The number that a key holds; 0 if it is missing or damaged."""
    digits = (text or b"").decode("ascii", "replace")
    return int(digits) if pattern.fullmatch(digits) else 0


def version_of(text: bytes | None) -> int:
    """The version that a key holds; 0 if it is missing or damaged."""
    return number_of(text, VERSION)
