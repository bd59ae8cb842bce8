"""Object stores, through fsspec: one file system per store and process, whose various errors become `OSError`.

In: a `Url`. Out: the fsspec file system that serves it. The store's address and credentials come from environment
variables and files that its package reads (`AWS_*`, `FSSPEC_*`, ...), never from a URL.

fsspec and the packages of stores are the extra `remote`, imported only if a URL is used.

Errors: a store that cannot be reached or refuses is an `OSError` with the URL and what to do; a missing object is a
`FileNotFoundError`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from optimizer.errors import install_command
from optimizer.storage.error_text import cause_of
from optimizer.storage.location import STORE_SCHEMES, WEB_SCHEMES, Url

__all__ = ["check_url", "file_system", "translated_errors"]

# Retries are few, since the next tick tries again. A server that accepts connections and never answers costs four times
# READ_TIMEOUT_S: botocore's attempts times those of s3fs. The defaults of s3fs would take 75 s times botocore's five.
CONNECT_TIMEOUT_S: Final = 3
READ_TIMEOUT_S: Final = 10
TRIES: Final = 2
S3_SCHEMES: Final = ("s3", "s3a")

_QUERY: Final = re.compile(r"\?[A-Za-z][\w.-]*=")
_LOGIN: Final = re.compile(r"[^/]*@|[^/:]*:(?!\d*(/|$)).*@")

# The packages of stores and their dependencies. The exceptions that they raise have no common base class.
_PACKAGES: Final = frozenset(
    {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs"}
)


def check_url(url: Url, *, is_output: bool = False) -> None:
    """Check that a URL can be used here; no request is sent.

    Args:
        url: The URL of an input or an output.
        is_output: Whether snapshots will be written there.

    Raises:
        ValueError: It cannot be used; the message holds no part of a secret.
    """
    scheme, mark, rest = url.text.partition("://")
    if _LOGIN.match(url.path):
        raise ValueError(
            "holds a user or a password; leave them out: credentials come from the store's own environment variables "
            "and files, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from the machine's role"
        )
    if scheme not in (*STORE_SCHEMES, *WEB_SCHEMES) or not mark:
        raise ValueError(_other_scheme(url.text))
    if not url.path.strip("/") or url.path.startswith("/"):
        raise ValueError(f"names no {'host' if url.is_web else 'bucket'} after {scheme}://")
    if url.is_web:
        _check_web(url, is_output=is_output)
        return
    if _QUERY.search(rest):
        raise ValueError(f"has a query, which {scheme}:// has not; a presigned or SAS URL begins with https://")
    try:
        from fsspec import get_filesystem_class  # noqa: PLC0415 - an extra

        get_filesystem_class(scheme)
    except ImportError as error:
        raise ValueError(
            f"needs a package that is not installed ({error}); for s3:// install it by: {install_command('remote')}"
        ) from None


def _other_scheme(text: str) -> str:
    allowed = ", ".join(f"{one}://" for one in (*STORE_SCHEMES, *WEB_SCHEMES))
    begin, _, after = text.partition(":")
    if after.startswith(":"):
        return f"is a chain of URLs ({begin}::...), which is not followed; write the store's own URL"
    if begin.lower() == "file":
        return "does not name an absolute path; write file:///data/rolling_brain.json.gz, or the path alone"
    if begin.lower() in (*STORE_SCHEMES, *WEB_SCHEMES):
        return f"does not begin with {begin.lower()}://, which seems to be meant"
    return f"begins with {begin}://, which is none of {allowed}; anything else is a local path"


def _check_web(url: Url, *, is_output: bool) -> None:
    if is_output:
        raise ValueError(f"begins with {url.scheme}://, where nothing can be written; set a directory or a store's URL")
    try:
        parts = urlsplit(url.text)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # its text may quote a piece of the URL
        has_host = False
    if not has_host:
        raise ValueError("has no readable host and port")
    if not re.fullmatch(r"[!-~]+", url.text):
        raise ValueError("holds a space, a letter that is not ASCII, or a control character; percent-encode it")
    if re.search(r"[*\[\]]", parts.path):
        raise ValueError(
            "looks like a pattern, and a web server cannot be asked what it has; name each file in ROLLING_SOURCES, "
            "or write %2A, %5B and %5D for the characters themselves"
        )


def file_system(url: Url) -> Any:
    """Return the file system of a URL; it lives, with its connections, as long as this process."""
    return _file_systems.get(url)


@contextmanager
def translated_errors(url: Url) -> Iterator[None]:
    """Turn every failure of a store into an `OSError`; `FileNotFoundError` stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        # Any other exception is not the store's: the time limit of a task, for example.
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _PACKAGES:
            raise
        raise OSError(f"{url}: {type(error).__name__}: {cause_of(error)}") from error


class _FileSystems:
    """The file systems of this process, by bucket."""

    def __init__(self) -> None:
        self._inherited: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._by_root: dict[str, Any] = {}

    def get(self, url: Url) -> Any:
        with self._lock:
            if url.root not in self._by_root:
                from fsspec.core import url_to_fs  # noqa: PLC0415 - an extra

                # fsspec's instance cache is not used: fsspec drops its instances in a forked child, where closing them
                # waits for a thread of the parent. A cached listing would hide what another host has written.
                options = {"skip_instance_cache": True, "use_listings_cache": False} | _options(url.scheme)
                store, _ = url_to_fs(url.text, **options)
                if url.scheme in S3_SCHEMES:
                    store.retries = TRIES  # s3fs has no option for it
                self._by_root[url.root] = store
            return self._by_root[url.root]

    def after_fork(self) -> None:
        """Start empty in a forked child. The parent's instances stay referenced, unused: freeing them would block."""
        self._inherited.append(self._by_root)
        self._lock = threading.Lock()
        self._by_root = {}


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in S3_SCHEMES:
        return {}
    from fsspec.config import conf  # noqa: PLC0415 - an extra

    limits = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "retries": {"mode": "standard", "total_max_attempts": TRIES},
    }
    # An option given here replaces the same option of the user's configuration, so both are merged.
    return {"config_kwargs": limits | conf.get(scheme, {}).get("config_kwargs", {})}


_file_systems: Final = _FileSystems()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_file_systems.after_fork)
