"""A producer that is killed (SIGKILL) before a given step, in a process that is forked for each write."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.support.rolling_files import a_record

__all__ = ["RECORDS_WRITTEN", "KilledProducer"]

# Enough for several members of the size that is used here.
RECORDS_WRITTEN: Final[dict[str, Any]] = {
    f"S{number}": a_record(curve=list(range(500)), mark=0) for number in range(20)
}

# A step is an opening of a file for writing, a write (of which half is made), or a change of a name.
_CODE: Final = """
import json, os, signal, sys
from optimizer.producer import write_rolling
from optimizer.producer.members import Members

Members.__init__.__defaults__ = (2_000,)
records = json.loads(sys.argv[1])
write = os.write
left = 0

def is_last():
    global left
    left -= 1
    return left == 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def hook(event, arguments):
    is_written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if (is_written or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime")) and is_last():
        die()

def write_half(descriptor, data):
    if is_last():
        write(descriptor, data[: len(data) // 2])
        die()
    return write(descriptor, data)

sys.addaudithook(hook)
os.write = write_half
for line in sys.stdin:
    step, path, parts, mark = json.loads(line)
    child = os.fork()
    if not child:
        left = step
        write_rolling(path, {symbol: one | {"mark": mark} for symbol, one in records.items()}, parts=parts, bots={})
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class KilledProducer:
    """A producer that writes `RECORDS_WRITTEN`, and is killed before a given step."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _CODE, json.dumps(RECORDS_WRITTEN)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def dies_at(self, step: int, path: Path, *, parts: int = 0, mark: int = 0) -> bool:
        """Write with this mark, and die before a step (from 1); return false if the write ended before that step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([step, str(path), parts, mark]) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL)
        return status != 0

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
