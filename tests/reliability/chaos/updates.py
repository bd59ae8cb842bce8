"""An engine that publishes updates all the time, each with the same symbols and with one number in all of them."""

from __future__ import annotations

import random
import threading
from typing import Any, Final

from optimizer import Settings
from optimizer.errors import CacheUnavailable, UpdatesRefused
from optimizer.producer import publish
from tests.support.redis_servers import wait_until

__all__ = ["UPDATED", "Updater", "number_in"]

UPDATED: Final = tuple(f"U{i}" for i in range(5))
EVERY_S: Final = 0.1
REMOVALS: Final = 0.2


def number_in(records: list[dict[str, Any]]) -> float | None:
    """Return the number of the update that a version shows, or `None`; fail if it shows a part of a call."""
    numbers = [record["prediction"] for record in records if record["symbol"] in UPDATED]
    assert len(numbers) in (0, len(UPDATED)), f"torn: {len(numbers)} records of one update"
    assert len(set(numbers)) < 2, f"torn: records of several updates {numbers}"
    return numbers[0] if numbers else None


class Updater:
    """A thread that publishes and removes the symbols until it is stopped.

    `last` is the number that has to be shown after the last call that was certainly accepted, `None` after a removal.
    A file that is written later supersedes it.
    """

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self.accepted = 0
        self.last: float | None = None
        self._is_certain = False
        self._settings = settings
        self._rng = random.Random(rng.random())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._publish_for_ever, name="updater")

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def stop(self) -> None:
        """Stop publishing."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def come_to_rest(self) -> None:
        """Stop publishing after three more accepted calls, once it is certain that the last one was accepted."""
        before = self.accepted
        wait_until(lambda: self.accepted >= before + 3 and self._is_certain, what="updates that are accepted")
        self.stop()

    def _publish_for_ever(self) -> None:
        number = 0
        while not self._stopped.wait(EVERY_S):
            number += 1
            is_removal = self._rng.random() < REMOVALS
            try:
                if is_removal:
                    publish(remove=UPDATED, settings=self._settings)
                else:
                    records = [
                        {"symbol": symbol, "prediction": number, "confidence": 0.5, "last_price": number}
                        for symbol in UPDATED
                    ]
                    answer = publish(records, settings=self._settings)
                    assert not answer.rejected
            except CacheUnavailable:  # the call may have been accepted
                self._is_certain = False
            except UpdatesRefused:
                pass
            else:
                self.last, self._is_certain = None if is_removal else float(number), True
                self.accepted += 1
