"""The guards of a version, called before any of it is written: two on its counts, and a function of the user's.

In: the new set, and the current version before it. Out: nothing, or `GuardRefused`.

`ROLLING_GUARD` is foreign code: it may hang, exit, or change its arguments. It is called in a separate thread, with
copies, so that whatever it does, this run can still be ended by its time limit, by a signal (which Python handles in
the main thread), or by the end of the process. An abandoned call goes on in its thread; until it ends, the guard
refuses, so that no more than one call hangs.
"""

from __future__ import annotations

import os
import reprlib
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from importlib import import_module
from typing import Final

from optimizer.cache.client import UNREADABLE
from optimizer.config.settings import Settings
from optimizer.errors import GuardRefused, SettingsInvalid
from optimizer.log import SourceLog
from optimizer.models import VersionContent
from optimizer.pipeline.version import Predecessor
from optimizer.selection.acceptance import advise, check_counts
from optimizer.snapshots.format import SnapshotSet

__all__ = ["check_guards", "load_guard"]

Guard = Callable[[VersionContent, VersionContent | None], object]

POLL_S: Final = 0.2
# The longest reason of a guard that is kept: Redis keeps the reports of a day, and each refused tick has one.
MAX_REASON_CHARACTERS: Final = 1_024

_log = SourceLog(__name__)
# Whether the last call of each source has ended. The thread cannot tell: before Python 3.13, a join that is interrupted
# by a signal's exception (Celery's time limit) marks the thread as ended, though it goes on.
_calls: Final[dict[tuple[int, str, str, str], threading.Event]] = {}


def check_guards(
    settings: Settings,
    new: SnapshotSet,
    before: Predecessor | None,
    *,
    accept: bool,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Check that a version may be published.

    Args:
        settings: All settings of the source.
        new: The version.
        before: The version before, if there is one. If its content is unreadable or unknown, the user's guard gets
            `None` and a warning is logged: refusing would keep a damaged version.
        accept: The user accepts this input: no guard is called.
        wait: Called repeatedly while the user's guard runs; an exception from it ends the run.

    Raises:
        GuardRefused: It may not be published; the message says why.
    """
    if accept:
        return
    check_counts(
        new.manifest,
        before.manifest if before else None,
        input_name=str(settings.input),
        min_records=settings.min_records,
        max_drop_percent=settings.max_drop_percent,
    )
    if settings.guard:
        # Decoded again, since the guard may change its arguments.
        reason = _ask(settings, new.content(), _read(settings, before), wait)
        if reason:
            raise GuardRefused(f"{settings.input}: {reason}; the old snapshots stay. {advise('See what it checks')}")


def load_guard(name: str) -> Guard:
    """Import a guard by its name, `package.module:function`.

    Raises:
        SettingsInvalid: It cannot be imported, or is no function.
    """
    module, _, function = name.partition(":")
    try:
        guard: Guard = getattr(import_module(module), function)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module of the user's may call sys.exit
        raise SettingsInvalid(
            f"ROLLING_GUARD={name} cannot be imported: {_describe(error)}; it has to be in an installed package, or in "
            "a directory of PYTHONPATH"
        ) from error
    if not callable(guard):
        raise SettingsInvalid(f"ROLLING_GUARD={name} is not a function: {reprlib.repr(guard)}")
    return guard


def _read(settings: Settings, before: Predecessor | None) -> VersionContent | None:
    if before is None:
        return None
    with suppress(*UNREADABLE):
        if before.snapshots is not None:
            return before.snapshots.content()
    _log.warning(
        "the guard %s is told of no version before, for version %s cannot be read",
        settings.guard,
        before.manifest.version,
        source=settings.source,
    )
    return None


def _ask(settings: Settings, new: VersionContent, current: VersionContent | None, wait: Callable[[], None]) -> str:
    """Call the user's guard; return its reason to refuse, empty if it passes."""
    owner = (os.getpid(), settings.source, str(settings.output_dir), settings.guard)
    before = _calls.get(owner)
    if before is not None and not before.is_set():
        return (
            f"ROLLING_GUARD={settings.guard} has not returned since an earlier run was ended, and refuses until then; "
            "restart this process"
        )
    reasons: list[str] = []
    has_ended = _calls[owner] = threading.Event()

    def call() -> None:
        try:
            reasons.append(_call(settings, new, current))
        finally:
            has_ended.set()

    # In the context of the run, so that its trace includes the guard.
    name = f"rolling-guard-{settings.source}"
    threading.Thread(target=copy_context().run, args=(call,), name=name, daemon=True).start()
    while not has_ended.wait(POLL_S):
        wait()
    return reasons[0]


def _call(settings: Settings, new: VersionContent, current: VersionContent | None) -> str:
    name, source = settings.guard, settings.source
    variable = f"ROLLING_GUARD={name}"
    try:
        guard = load_guard(name)
    except BaseException as error:  # as above, and KeyboardInterrupt
        _log.exception("the guard %s cannot be used", name, source=source, error=error)
        # An error without text, such as KeyboardInterrupt, would be an empty reason, which passes.
        return str(error) or f"{variable} cannot be imported: {_describe(error)}"
    try:
        returned = guard(new, current)
    except GuardRefused as error:
        return f"{variable} refuses: {_text_of(error)}"
    except BaseException as error:  # SystemExit too, which would end a schedule's thread or a child of Celery
        described = _describe(error)  # not the error itself: if a log cannot format it, this thread would end
        _log.exception("the guard %s failed: %s", name, described, source=source)
        return f"{variable} failed, and so refuses: {described}; the log has its traceback"
    return _refusal_of(variable, returned)


def _refusal_of(variable: str, returned: object) -> str:
    if returned is None:
        return ""
    if isinstance(returned, str):  # checked first: comparing an array with text gives an array
        return f"{variable} refuses: {_shorten(returned)}" if returned else ""
    if isinstance(returned, Coroutine):
        returned.close()
        return f"{variable} is an async function, and so refuses; make it a plain one, which may call asyncio.run"
    return f"{variable} returned {reprlib.repr(returned)}, and so refuses; return None to pass, and text to refuse"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {_text_of(error)}"


def _text_of(error: BaseException) -> str:
    try:
        return _shorten(str(error))
    except Exception:  # the user's own error, whose __str__ may raise anything
        return "its message cannot be shown"


def _shorten(text: str) -> str:
    """Return the text as valid UTF-8, shortened to fit into a report."""
    valid = text.encode("utf-8", "replace").decode().strip() or "no reason is given"
    return valid if len(valid) <= MAX_REASON_CHARACTERS else f"{valid[:MAX_REASON_CHARACTERS]}..."
