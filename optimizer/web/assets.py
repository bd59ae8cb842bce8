"""The static files, read once and sent from memory: the dashboard, and the module by which any page follows a source.

The dashboard's content security policy allows nothing from other origins.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from optimizer.web.prepared import Headers, Prepared

__all__ = ["FOLLOW_PATH", "load_asset", "load_assets"]

DIRECTORY: Final = Path(__file__).parent / "static"
INDEX_NAME: Final = "index.html"
FOLLOW_PATH: Final = "/static/follow.js"
# Python's `mimetypes` depends on the machine and the version, and browsers refuse a module of another type.
MEDIA_TYPES: Final = {".js": "text/javascript", ".ts": "text/plain"}

# No inline scripts or styles, nothing from other origins, no frames around the page or in it.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_SECURITY: Final[Headers] = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]


@cache
def load_assets(directory: Path = DIRECTORY) -> Mapping[str, Prepared]:
    """Load every file below the directory, for `/static/`, and the page, for `/`."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    assets = {f"/static/{path.relative_to(directory).as_posix()}": _prepare(path) for path in paths}
    return assets | {"/": assets[f"/static/{INDEX_NAME}"]}


@cache
def load_asset(path: str, directory: Path = DIRECTORY) -> Prepared:
    """Load the file that is served at this path below `/static/`."""
    return _prepare(directory / path.removeprefix("/static/"))


def _prepare(path: Path) -> Prepared:
    body = path.read_bytes()
    media_type = MEDIA_TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    charset = "; charset=utf-8" if media_type.startswith("text/") else ""
    headers: Headers = [
        (b"content-type", f"{media_type}{charset}".encode()),
        (b"cache-control", b"no-cache"),  # the files change with the package, their names do not
        (b"vary", b"accept-encoding"),
        *_SECURITY,
    ]
    gz = gzip.compress(body, 9, mtime=0)
    etag, gz_etag = (hashlib.sha256(data).hexdigest()[:32] for data in (body, gz))
    return Prepared(body, etag, headers, gz=gz, gz_etag=gz_etag, per_request_headers=list)
