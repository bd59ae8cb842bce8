"""The responses of one version: whole snapshots and the page are prepared, the rest is made on demand.

Values in, bytes out; no I/O. They are prepared once a version, in the reader's thread, since a page with ten thousand
bots takes a while.
"""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Final, NoReturn

import msgspec

from optimizer.cache.keys import PAYLOAD_KINDS
from optimizer.models import BotSummary, Holding, PredictionsSnapshot, Record, Rejected, Value
from optimizer.reader.reports import describe_rejected
from optimizer.reader.results import Answer, CachedVersion
from optimizer.web.encoding import SHORTEST_BYTES, ZSTD_VERSION
from optimizer.web.negotiate import http_date
from optimizer.web.prediction_query import ALL, JSON, JSON_HEADERS, Form, PredictionQuery
from optimizer.web.prepared import Headers, Prepared, ResponseCache
from optimizer.web.problems import PartMissing

__all__ = ["PageSummary", "Pages", "SnapshotPage", "WholeVersion"]

PAGE_SYMBOLS: Final = 50
GZIP_LEVEL: Final = 6
# Responses to filters that are cached per version: dashboards repeat the same few.
CACHED_RESPONSES: Final = 256
# A longer filter is not cached, so that made-up filters cannot fill the memory.
CACHED_RESPONSE_BYTES: Final = 32 * 1024

_encode: Final = msgspec.json.Encoder().encode


class PageSummary(Value, frozen=True):
    """Sums over all usable bots; a value that a bot lacks counts as 0.

    `notes` describes in words the units counted by `rejected`, which the snapshots, and so the sums, leave out.
    """

    total_equity: float
    pnl_today: float
    active_bots: int
    open_positions: int
    rejected: Rejected | None
    notes: list[str]


class SnapshotPage(Value, frozen=True):
    """All data of a page, of one version."""

    version: int
    timestamp: str
    predictions: list[Record]
    bots: dict[str, BotSummary]
    holdings: list[Holding]
    summary: PageSummary


class WholeVersion(Value, frozen=True):
    """A whole version: every prediction, bot and holding."""

    version: int
    generated_at: str
    predictions: list[Record]
    bots: dict[str, BotSummary]
    holdings: list[Holding]
    rejected: Rejected | None
    timestamp: str


class Pages:
    """The responses of one version.

    Args:
        cached: The version.
        per_request_headers: Makes the headers that change within a version, for a response from one of its payloads.
    """

    def __init__(
        self, cached: CachedVersion, per_request_headers: Callable[[CachedVersion, str | None], Headers]
    ) -> None:
        self.version = cached.version
        self._cached = cached
        self._per_request_headers = per_request_headers
        self._last_modified_s = int(datetime.fromisoformat(cached.manifest.generated_at).timestamp())
        self._headers = self._headers_of(cached.version)
        if cached.manifest.rejected is not None:
            self._headers.append((b"x-snapshot-rejected", _rejected_header(cached.manifest.rejected)))
        self._whole = {
            kind: self._prepare(
                kind,
                payload.plain,
                f"{payload.etag}-plain",
                self._headers,
                gz=payload.gz,
                gz_etag=payload.etag,
                zstd_etag=f"{payload.etag}-{ZSTD_VERSION}",
            )
            for kind, payload in cached.payloads.items()
        }
        self.whole_page = self._prepare_page() if cached.is_whole else None
        # Made at the first request: few clients ask for it, and 10,000 records take a tenth of a second.
        self.whole_version: Prepared | None = None
        self._making = threading.Lock()
        self._symbols: dict[str, Prepared] = {}
        self._filtered = ResponseCache(CACHED_RESPONSES)

    def show(self, cached: CachedVersion) -> bool:
        """Use these responses for `cached` too if it has the same payloads; return whether it has."""
        ours = self._cached
        return (ours.version, ours.manifest.rejected, _etags(ours)) == (
            cached.version,
            cached.manifest.rejected,
            _etags(cached),
        )

    def whole(self, kind: str) -> Prepared | None:
        """Return a whole snapshot; `None` if it cannot be read in this version."""
        return self._whole.get(kind)

    def readable(self, kind: str) -> Prepared:
        """Return a whole snapshot.

        Raises:
            PartMissing: It cannot be read.
        """
        return self._whole.get(kind) or self._fail(kind)

    def page(self) -> Prepared:
        """Return the page.

        Raises:
            PartMissing: A part of it cannot be read.
        """
        return self.whole_page or self._fail()

    def make_whole_version(self) -> Prepared:
        """Make the response with the whole version, once; in a thread, since it may take a while.

        Raises:
            PartMissing: A part of it cannot be read.
        """
        with self._making:
            if self.whole_version is None:
                if not self._cached.is_whole:
                    self._fail()
                best, bots, portfolio = (self._cached.payloads[kind].value for kind in PAYLOAD_KINDS)
                manifest = self._cached.manifest
                whole = WholeVersion(
                    version=self.version,
                    generated_at=manifest.generated_at,
                    predictions=best.predictions,
                    bots=bots.bots,
                    holdings=portfolio.holdings,
                    rejected=manifest.rejected,
                    timestamp=best.timestamp,
                )
                self.whole_version = self.respond(_encode(whole))
            return self.whole_version

    def respond(
        self, body: bytes, own: Headers = JSON_HEADERS, *, kind: str | None = None, is_compressed: bool = True
    ) -> Prepared:
        """Make a response of this version with a body that was made on demand.

        Args:
            body: The body.
            own: Additional headers, which replace common headers of the same name.
            kind: The payload from which it was made, if it was made from one.
            is_compressed: False to send it uncompressed, which saves time.
        """
        gz = gzip.compress(body, GZIP_LEVEL, mtime=0) if is_compressed and len(body) >= SHORTEST_BYTES else None
        names = {name for name, _ in own}
        headers = [*own, *(header for header in self._headers if header[0] not in names)]
        etag = _digest(body)
        gz_etag, zstd_etag = ("", "") if gz is None else (_digest(gz), f"{etag}-{ZSTD_VERSION}")
        return self._prepare(kind, body, etag, headers, gz=gz, gz_etag=gz_etag, zstd_etag=zstd_etag)

    def _fail(self, *kinds: str) -> NoReturn:
        missing = ", ".join(kinds or (kind for kind in PAYLOAD_KINDS if kind not in self._whole))
        raise PartMissing(f"version {self.version} has no readable {missing}; the next publish mends it")

    def symbol(self, symbol: str) -> Prepared | None:
        """Return the response with the record of a symbol; `None` if it is not among the predictions."""
        response = self._symbols.get(symbol)
        if response is None:
            record = self._cached.records.get(symbol)
            if record is None:
                return None
            per_request_headers = partial(self._per_request_headers, self._cached, "predictions")
            response = self._symbols[symbol] = self._record(self.version, record, per_request_headers)
        return response

    def looked_up(self, answer: Answer[Record | None], per_request_headers: Callable[[], Headers]) -> Prepared | None:
        """Return the response with a looked-up record of this version or the next; `None` if there is none."""
        return None if answer.value is None else self._record(answer.version, answer.value, per_request_headers)

    def _record(self, version: int, record: Record, per_request_headers: Callable[[], Headers]) -> Prepared:
        body = _encode(record)
        headers = self._headers if version == self.version else self._headers_of(version)
        return Prepared(
            body,
            _digest(body),
            headers,
            per_request_headers=per_request_headers,
            last_modified_s=self._last_modified_s,
        )

    def cached(self, query: PredictionQuery, form: Form = JSON) -> Prepared | None:
        """Return the cached response of `filtered`, if there is one."""
        return self._filtered.get((form.name, query))

    def filtered(self, query: PredictionQuery, form: Form = JSON) -> Prepared:
        """Return the response with a part of the predictions, by default in the same form as all of them."""
        response = self.cached(query, form)
        if response is None:
            whole: PredictionsSnapshot = self._cached.payloads["predictions"].value
            shown, total = query.select(whole.predictions)
            body = form.encode(whole, shown)
            own = [*form.headers(self._cached), (b"x-total-count", b"%d" % total)]
            response = self.respond(body, own, kind="predictions", is_compressed=form.is_compressed)
            if len(body) <= CACHED_RESPONSE_BYTES or query == ALL:
                self._filtered.store((form.name, query), response)
        return response

    def _prepare_page(self) -> Prepared:
        payloads = self._cached.payloads
        best, bots = payloads["predictions"].value, payloads["bots"].value.bots
        page = SnapshotPage(
            self.version,
            best.timestamp,
            best.predictions[:PAGE_SYMBOLS],
            bots,
            payloads["portfolio"].value.holdings,
            _summary(bots.values(), self._cached.manifest.rejected),
        )
        return self.respond(_encode(page))

    def _prepare(
        self,
        kind: str | None,
        plain: bytes,
        etag: str,
        headers: Headers,
        *,
        gz: bytes | None,
        gz_etag: str,
        zstd_etag: str,
    ) -> Prepared:
        return Prepared(
            plain,
            etag,
            headers,
            gz=gz,
            gz_etag=gz_etag,
            zstd_etag=zstd_etag,
            per_request_headers=partial(self._per_request_headers, self._cached, kind),
            last_modified_s=self._last_modified_s,
        )

    def _headers_of(self, version: int) -> Headers:
        return [
            *JSON_HEADERS,
            # Caches may keep it but have to revalidate it each time: a 304 is cheap, an outdated page is harmful.
            (b"cache-control", b"no-cache"),
            (b"vary", b"accept-encoding"),
            (b"last-modified", http_date(self._last_modified_s)),
            (b"x-snapshot-version", str(version).encode()),
            (b"x-content-type-options", b"nosniff"),
        ]


def _summary(bots: Iterable[BotSummary], rejected: Rejected | None) -> PageSummary:
    every = list(bots)
    return PageSummary(
        total_equity=sum(bot.equity or 0.0 for bot in every),
        pnl_today=sum(bot.pnl_today or 0.0 for bot in every),
        active_bots=sum(bot.enabled for bot in every),
        open_positions=sum(bot.positions for bot in every),
        rejected=rejected,
        notes=describe_rejected(rejected),
    )


def _rejected_header(rejected: Rejected) -> bytes:
    """Return the number of rejected units out of all, by kind: `records=0/101, bots=1/5`."""
    counts = (("records", rejected.records), ("bots", rejected.bots))
    return ", ".join(f"{kind}={units.rejected}/{units.seen}" for kind, units in counts).encode()


def _etags(cached: CachedVersion) -> dict[str, str]:
    return {kind: payload.etag for kind, payload in cached.payloads.items()}


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32]
