"""`rolling-optimizer versions`, `rollback` and `unpin`, as an operator runs them after an engine wrote bad data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer import Settings, optimize
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.process import user_at_host
from optimizer.pipeline.updates import enqueue
from optimizer.snapshots.store import snapshot_store
from tests.support.command import rolling_optimizer
from tests.support.ports import free_port
from tests.support.published_state import NEW, once, run_old, symbols_shown, version_of
from tests.support.rolling_files import local, write_json

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(settings: Settings, tmp_path: Path) -> Command:
    """Return a function that runs `rolling-optimizer` with the test's settings, under which four versions are kept."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {
            "ROLLING_INPUT": str(settings.input),
            "ROLLING_REDIS_URL": settings.redis_url,
            "ROLLING_OUTPUT_DIR": str(settings.output_dir),
            "ROLLING_KEEP_VERSIONS": "4",
        }
        return rolling_optimizer(tmp_path, *arguments, **(environ | variables))

    return run


def test_the_night_on_which_an_engine_writes_nonsense(settings: Settings, command: Command) -> None:
    """An operator lists the kept versions, rolls back to the good one, and unpins it once the engine works again.

    While the version is pinned, a run is skipped, and `versions`, `run` and `status` show the pin. After `unpin`, a run
    publishes the input again.
    """
    good = version_of(run_old(settings))
    write_json(settings.input, NEW)
    bad = version_of(optimize(settings))

    listed = command("versions")
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert lines[0].split() == ["version", "made", "predictions", "bots", "holdings", "changed", "by"]
    assert re.fullmatch(rf"{bad}  \S+Z +2 +1 +0 .*  current", lines[1]), lines
    assert re.fullmatch(rf"{good}  \S+Z +2 +1 +1.*", lines[2]), lines

    back = command("rollback", good)
    assert back.returncode == 0, back.stderr
    [restored] = re.findall(r"^success: version (\d+), cache published$", back.stdout, re.MULTILINE)
    pin = rf"version {restored} is pinned since \S+Z by {re.escape(user_at_host())}"
    assert re.search(rf"^  version {good} again; {pin}$", back.stdout, re.MULTILINE), back.stdout
    assert symbols_shown(settings) == ["MSFT", "AAPL"]

    listed = command("versions")
    lines = listed.stdout.splitlines()
    changed = r"predictions \+1 ~1 -1, bots \+1 -1, holdings \+1"
    who = re.escape(user_at_host())
    assert re.fullmatch(
        rf"{restored}  \S+Z +2 +1 +1  {changed}  {who}  current; restored from {good}; pinned since \S+Z by {who}",
        lines[1],
    ), lines

    tick = command("run", "--force")
    assert tick.returncode == 0
    assert re.search(rf"skipped: pinned\n  {pin}; runs publish again after: rolling-optimizer unpin", tick.stdout)
    status = command("status")
    assert re.search(rf"^  restored from version {good}\n  {pin}; unpin it with:", status.stdout, re.MULTILINE)
    shown = json.loads(command("status", "--json").stdout)
    assert (shown["restored_from"], shown["pinned"]["by"]) == (good, user_at_host())

    unpinned = command("unpin")
    assert unpinned.returncode == 0
    assert f"unchanged: version {restored}" in unpinned.stdout
    assert re.search(rf"^  unpinned by {who}: {pin.replace(' is ', ' was ')}$", unpinned.stdout, re.MULTILINE)
    assert "pinned since" not in command("status").stdout.splitlines()[1]
    assert command("run").stdout.startswith("success")
    assert symbols_shown(settings) == ["NVDA", "MSFT"]


def test_versions_as_json_need_no_redis(settings: Settings, command: Command) -> None:
    """`versions --json` lists each kept version with all its members, also while Redis is away.

    A version with a damaged manifest is listed with its problem, and only the current version is shown as pinned.
    """
    first = version_of(run_old(settings))
    away = {"ROLLING_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    assert command("rollback", first, **away).returncode == 0
    assert command("rollback", first, **away).returncode == 0
    (local(settings.output_dir) / "versions" / str(first) / "manifest.json").write_bytes(b"{")

    shown = json.loads(command("versions", "--json", **away).stdout)

    assert (shown["source"], shown["output_dir"]) == ("rolling_brain", str(settings.output_dir))
    current, before, damaged = shown["versions"]
    manifest = snapshot_store(settings.output_dir).read_manifest()
    assert manifest is not None
    assert current == {
        "version": manifest.version,
        "current": True,
        "generated_at": manifest.generated_at,
        "counts": {"predictions": 2, "bots": 1, "portfolio": 1, "index": 2},
        "changes": {kind: {"added": 0, "changed": 0, "removed": 0} for kind in ("predictions", "bots", "holdings")},
        "rejected": {"records": {"seen": 2, "rejected": 0}, "bots": {"seen": 1, "rejected": 0}},
        "made_by": user_at_host(),
        "restored_from": first,
        "scan_version": None,
        "pinned": {"at": manifest.pinned.at, "by": user_at_host()} if manifest.pinned else "not pinned",
        "problem": None,
    }
    assert (before["current"], before["restored_from"], before["pinned"]) == (False, first, None)
    assert (damaged["version"], damaged["counts"]) == (first, None)
    assert damaged["problem"] == "manifest.json is missing or damaged"
    assert f"{first}  " in (text := command("versions", **away).stdout)
    assert "damaged: manifest.json is missing or damaged" in text
    assert "  nothing  " in text


def test_a_version_of_updates_names_its_scan(settings: Settings, command: Command) -> None:
    """`versions` names the scan that a version of updates stems from, once the next run has written it to the files."""
    scan = version_of(run_old(settings))
    enqueue(settings, [], ["NONE"])
    apply_updates(settings)
    optimize(settings)
    assert f"current; updates since the scan {scan}\n" in command("versions").stdout


def test_without_versions_there_is_nothing_to_list(settings: Settings, command: Command) -> None:
    """If no version is kept, `versions` says so and exits with 0; as JSON, the list is empty.

    This is no error: the service has not begun.
    """
    listed = command("versions")
    assert (listed.returncode, listed.stdout) == (
        0,
        f"no version of 'rolling_brain' is kept in {settings.output_dir}\n",
    )
    assert json.loads(command("versions", "--json").stdout)["versions"] == []


def test_what_cannot_be_done_is_one_line(settings: Settings, command: Command) -> None:
    """`rollback` to a version that is not kept exits with 1 and one line that names the kept versions.

    `unpin` without a pin is skipped, with exit status 0. A word in place of a version, and a source that does not
    exist, give exit status 2.
    """
    version = version_of(run_old(settings))
    missing = command("rollback", 7)
    assert missing.returncode == 1
    assert missing.stderr == (
        f"rolling-optimizer: VersionMissing: version 7 of 'rolling_brain' is not kept in {settings.output_dir}; kept "
        f"are {version}: rolling-optimizer versions\n"
    )
    nothing = command("unpin")
    assert nothing.returncode == 0
    assert nothing.stdout == (
        "skipped: not_pinned\n  no version of 'rolling_brain' is pinned: runs publish what the input holds\n"
    )
    assert command("rollback", "yesterday").returncode == 2
    for name in (("versions",), ("rollback", version), ("unpin",)):
        other = command(*name, "--source", "other")
        assert other.returncode == 2
        assert "other" in other.stderr


def test_with_several_sources_one_is_named(settings: Settings, command: Command) -> None:
    """With several sources, `--source` names the one to roll back or unpin; runs of the other are not skipped."""
    variables = {
        "ROLLING_INPUT": "",
        "ROLLING_SOURCES": f"rolling_brain={settings.input}; other={settings.input}.other",
        "ROLLING_OUTPUT_DIR": str(local(settings.output_dir).parent / "both"),
    }
    write_json(settings.input, NEW)
    write_json(Path(f"{settings.input}.other"), NEW)
    for source in ("rolling_brain", "other"):
        assert command("run", "--source", source, **variables).returncode == 0
    [kept] = json.loads(command("versions", "--json", "--source", "other", **variables).stdout)["versions"]
    back = command("rollback", kept["version"], "--source", "other", **variables)
    assert back.returncode == 0, back.stderr
    assert "skipped: pinned" in command("run", "--source", "other", **variables).stdout
    assert "unchanged" in command("run", "--source", "rolling_brain", **variables).stdout
    assert command("unpin", "--source", "other", **variables).returncode == 0


def test_a_rollback_says_that_it_waits(settings: Settings, tmp_path: Path) -> None:
    """A rollback during a run prints one line on stderr, waits for the run to end, and then publishes.

    If the run has not ended after `--wait` seconds, the rollback exits with 1 and `PublishRefused`.
    """
    version = version_of(run_old(settings))
    environ = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
    command = [sys.executable, "-m", "optimizer.cli", "rollback", str(version)]
    patient: list[subprocess.Popen[str]] = []
    said: list[str] = []

    def meanwhile() -> None:
        impatient = rolling_optimizer(tmp_path, "rollback", version, "--wait", 0.5, **environ)
        assert impatient.returncode == 1
        first, second = impatient.stderr.splitlines()
        assert first == "a run of rolling_brain is on; waiting up to 0.5 s for it to end"
        assert "PublishRefused: nothing has changed: a run of 'rolling_brain' is on" in second
        patient.append(subprocess.Popen(command, env=os.environ | environ, stderr=subprocess.PIPE, text=True))
        assert patient[0].stderr is not None
        said.append(patient[0].stderr.readline())

    write_json(settings.input, NEW)
    assert optimize(settings, progress=once(meanwhile)).status == "success"
    rest = patient[0].communicate(timeout=30)[1]
    assert patient[0].returncode == 0, rest
    assert [*said, rest] == ["a run of rolling_brain is on; waiting up to 300 s for it to end\n", ""]
    assert symbols_shown(settings) == ["MSFT", "AAPL"]
