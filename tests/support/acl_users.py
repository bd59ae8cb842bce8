"""The users of `docs/redis-acl.conf`, their passwords in tests, and the search for these in outputs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote

from optimizer.cache.keys import Keys
from tests.support.compose import ROOT
from tests.support.fleet import FLOWER_LOGIN
from tests.support.whole_fleet import TOKEN

__all__ = ["ACL_FILE", "REFUSED_TO_CONFIG", "ROLES", "acl_of", "forms_of", "password", "secrets_in"]

ACL_FILE: Final = ROOT / "docs" / "redis-acl.conf"
ROLES: Final = ("admin", "worker", "beat", "sender", "flower", "engine", "router")
# Commands that `config` tries and these users may not send: the user, and the command or the key.
REFUSED_TO_CONFIG: Final = {
    ("sender", "info"),
    ("router", "info"),
    ("sender", Keys("rolling_brain").probe),
    ("router", "set"),
}


def password(role: str) -> str:
    """Return the password of a role, with characters that a URL has to escape."""
    return f"wörd/of&{role}"


def acl_of(roles: Iterable[str]) -> str:
    """Return the shipped file with the passwords of these roles; the placeholders of other roles stay in it."""
    text = ACL_FILE.read_text()
    for role in roles:
        digest = hashlib.sha256(password(role).encode()).hexdigest()
        text = text.replace(f"#{role.upper()}-PASSWORD-SHA256", f"#{digest}")
    return text


def secrets_in(data: bytes | str) -> list[str]:
    """The secrets that a text contains: plain, as in a URL, as JSON escapes them, or in base64 at any offset."""
    data = data.encode() if isinstance(data, str) else data
    words = [*map(password, ROLES), TOKEN, FLOWER_LOGIN.partition(":")[2]]
    return [word for word in words if any(form in data for form in forms_of(word))]


def forms_of(word: str) -> Iterator[bytes]:
    """The forms in which a secret may occur: plain, as in a URL, as JSON escapes it, in base64 at any offset."""
    yield from {word.encode(), quote(word, safe="").encode(), quote(word).encode(), json.dumps(word)[1:-1].encode()}
    for before in range(3):  # the bytes before it shift its digits by bits
        digits = base64.b64encode(b" " * before + word.encode())
        yield digits[-(-before * 8 // 6) : -4]
