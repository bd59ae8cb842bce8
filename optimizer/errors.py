"""The errors that this package raises on purpose, as one tree.

    RollingError                 the base: catch this, and only this
    |-- SettingsInvalid          a ROLLING_* variable or an argument has a value that cannot be used
    |-- SourceError              the input cannot be turned into a snapshot; the old one stays
    |   |-- SourceMissing        there is no such file
    |   |-- SourceUnreadable     it is there and cannot be opened or read
    |   |-- SourceTorn           it changed while it was read, ended early or failed its checksum
    |   |-- SourceMalformed      it is whole, and it is not the JSON that it should be
    |   |-- PartFailed           one of several parts could not be scanned, so none counts
    |   |-- NoRecords            it is whole and well formed, and holds no record that can be shown
    |   |-- NoBots               it, or the bots directory, has bots, and none of them can be used
    |   |-- TooManyRejected      more of its records or bots cannot be used than the setting allows
    |   `-- GuardRefused         it is usable, and a guard of the user's refuses to show it
    |-- InputUnwritable          a producer could not write the input; the old one stays
    |-- RecordUnwritable         a producer's record cannot be written as JSON: it has NaN, or a type of no JSON
    |-- OutputUnwritable         the snapshot files could not be written; the old ones stay
    |-- OutputUnreadable         the snapshot files may not be read, or their object store does not answer
    |-- CacheUnavailable         Redis does not answer
    |-- PublishRefused           another run owns the lock, or has published something newer
    |-- UpdatesRefused           more updates than may wait or be held; none of the call was taken
    |-- UpdatesPending           updates are accepted, and not shown within the time to wait
    |-- UpdatesLost              updates were accepted, and Redis has lost them before they were shown
    |-- RunPending               a run that was requested before, and does less, has not ended
    |-- RunLost                  a scan has not come back: its worker was killed, or there is none
    |-- RunTimedOut              the run took longer than its time limit
    |-- ExtraMissing             an optional package is not installed
    |-- BenchFailed              a measurement did not end as it should
    |-- SnapshotMissing          a reader found no snapshot, neither in Redis nor in the files
    |-- ChangesMissing           what changed since a version is not held any more; take the whole snapshot
    `-- VersionMissing           a version that is to be published again is not kept, or is damaged

Every message says what broke, where (path, byte offset), the value, and what to do. Each class takes only the message,
so that Celery can serialise an error as JSON and restore it on the other side.

`require` raises `ExtraMissing` where an extra is needed first: one sentence in place of a traceback, and no import.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

# The public names; `require` and `install_command` are for this package.
__all__ = [
    "BenchFailed",
    "CacheUnavailable",
    "ChangesMissing",
    "ExtraMissing",
    "GuardRefused",
    "InputUnwritable",
    "NoBots",
    "NoRecords",
    "OutputUnreadable",
    "OutputUnwritable",
    "PartFailed",
    "PublishRefused",
    "RecordUnwritable",
    "RollingError",
    "RunLost",
    "RunPending",
    "RunTimedOut",
    "SettingsInvalid",
    "SnapshotMissing",
    "SourceError",
    "SourceMalformed",
    "SourceMissing",
    "SourceTorn",
    "SourceUnreadable",
    "TooManyRejected",
    "UpdatesLost",
    "UpdatesPending",
    "UpdatesRefused",
    "VersionMissing",
]


class RollingError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingsInvalid(RollingError):
    """A setting has a value that cannot be used; the message names the variable and the value."""


class SourceError(RollingError):
    """The input cannot be turned into a snapshot."""


class SourceMissing(SourceError):
    """The input does not exist."""


class SourceUnreadable(SourceError):
    """The input is there and cannot be opened or read: permissions, a directory, an I/O error."""


class SourceTorn(SourceError):
    """The input changed while it was read, ended early, or failed its checksum. The next tick tries again."""


class SourceMalformed(SourceError):
    """The input is whole, but not the expected JSON; the message has the byte offset in the JSON."""


class PartFailed(SourceError):
    """A part of a source could not be scanned; the message names each such part and why."""


class NoRecords(SourceError):
    """The input holds no usable record. An empty snapshot never replaces a good one."""


class NoBots(SourceError):
    """The input, or the bots directory, has bots, and none can be used. An empty set never replaces a good one."""


class TooManyRejected(SourceError):
    """More records or bots were rejected than `ROLLING_MAX_REJECTED_PERCENT` allows; the old snapshots stay."""


class GuardRefused(SourceError):
    """A guard refuses to publish this version; the message names guard, value and limit. The old snapshots stay."""


class InputUnwritable(RollingError):
    """A producer could not write the input: disk full, read-only, no permission. What was there before stays."""


class RecordUnwritable(RollingError):
    """A producer's record cannot be written as JSON; the message has its symbol, the field and the value."""


class OutputUnwritable(RollingError):
    """The snapshot files could not be written: disk full, read-only, no permission."""


class OutputUnreadable(RollingError, OSError):
    """The snapshot files are there and cannot be read, or their store does not answer or refuses; an `OSError` too."""


class CacheUnavailable(RollingError):
    """Redis does not answer, or answers with an error."""


class PublishRefused(RollingError):
    """The run lost its lock, or a newer version is already published; nothing was published."""


class UpdatesRefused(RollingError):
    """More records are waiting, in one call, or held than a setting allows; nothing of the call was taken."""


class UpdatesPending(RollingError):
    """Updates were accepted and are not shown yet: a version is pinned, there is none, or no worker takes them."""


class UpdatesLost(RollingError):
    """Updates were accepted, and Redis has lost its data before they were shown; publish them again."""


class RunPending(RollingError):
    """A run that was requested before has not ended, and does less than the one requested now."""


class RunLost(RollingError):
    """A scan has not come back: its worker was killed, Redis was away when it ended, or no worker takes its queue."""


class RunTimedOut(RollingError):
    """The run took longer than the time limit of its task."""


class ExtraMissing(RollingError, ModuleNotFoundError):
    """A package of an extra is not installed; the message names it and the command. A `ModuleNotFoundError` too."""


class BenchFailed(RollingError):
    """A measured process ended without a result; the message has the last line of its output."""


class SnapshotMissing(RollingError):
    """There is no snapshot to read, neither in Redis nor in the files."""


class ChangesMissing(RollingError):
    """The changes since a version are not held any more, or never were; the message names the snapshot to take."""


class VersionMissing(RollingError):
    """A version is not kept, or its files are damaged; the message names the versions that are kept."""


def require(what: str, extra: str, *packages: str) -> None:
    """Check that packages are installed.

    Args:
        what: The module or command that needs them.
        extra: The extra that installs them, or several, separated by commas.
        packages: Their import names.

    Raises:
        ExtraMissing: At least one is not installed; the message names it, and the command that installs it.
    """
    missing = [name for name in packages if not _is_installed(name)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise ExtraMissing(f"{what} needs {', '.join(missing)}, which {are} not installed: {install_command(extra)}")


def _is_installed(package: str) -> bool:
    """Whether a package can be imported. A loaded package is not searched for: kombu, once loaded, has no spec."""
    return sys.modules[package] is not None if package in sys.modules else find_spec(package) is not None


def install_command(extra: str) -> str:
    """Return the command that installs an extra, or several, separated by commas."""
    return f"pip install 'rolling-optimizer[{extra}]'"
