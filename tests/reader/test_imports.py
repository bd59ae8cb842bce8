"""The modules that a process which only reads has to load."""

from __future__ import annotations

import subprocess
import sys

MODULES_AT_MOST = 18
PROGRAM = """
import sys, optimizer
optimizer.SnapshotReader
print(*(name for name in sys.modules if name.partition(".")[0] == "optimizer"))
"""


def test_a_reader_loads_little_and_nothing_that_scans() -> None:
    """A process that only reads, such as a router's, loads at most 18 modules of this package, its packages counted.

    None of them belongs to scanner, selection, pipeline, source, Celery, command line or web.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    packages = {name.split(".")[1] for name in modules if "." in name}
    assert not packages & {"scan", "selection", "pipeline", "source", "celery", "cli", "web"}
    assert len(modules) <= MODULES_AT_MOST, modules
