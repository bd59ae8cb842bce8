"""An input by URL: its fingerprints, requested periodically.

A put into an object store is all or nothing, so what is there is whole. A web server's file is taken for whole too; a
run that reads it while it is written to finds it torn.
"""

from __future__ import annotations

import threading
from typing import Final

from optimizer.errors import SourceMissing
from optimizer.source.opener import fingerprints
from optimizer.storage.location import Url
from optimizer.watch.landing import Seen

__all__ = ["RemotePlace"]

TICK_S: Final = 0.1


class RemotePlace:
    """The objects of one input, or a file on the web.

    Args:
        url: A URL, or a pattern.
        poll_s: The time between two requests.
        stopped: Ends a wait.
    """

    def __init__(self, url: Url, poll_s: float, stopped: threading.Event) -> None:
        self._url = url
        self._stopped = stopped
        self.look_s = poll_s

    def look(self) -> dict[str, Seen]:
        """Return the objects.

        Raises:
            SourceUnreadable: The store or the server does not say.
        """
        try:
            return {name: Seen(tag, name, is_whole=True) for name, tag in fingerprints(self._url).items()}
        except SourceMissing:
            return {}

    def wait(self) -> bool:
        """Wait for a moment; nothing announces a change."""
        self._stopped.wait(TICK_S)
        return False

    def close(self) -> None:
        """Do nothing, since nothing is open."""
