"""The behaviour that all commands share: help, colours, Ctrl-C, imports, bad variables, URLs for paths."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli.commands import MODULES, commands
from tests.support.command import in_terminal, rolling_optimizer
from tests.support.compose import ROOT
from tests.support.ports import free_port
from tests.support.redis_servers import RedisServer
from tests.support.s3_server import S3Server


def test_help_has_every_command_on_one_line_that_is_not_cut() -> None:
    """`-h` lists each command on one line of 80 columns, uncut, and on more lines in fewer columns.

    Each command explains itself with `-h` too.
    """
    shown = CliRunner().invoke(commands, ["-h"], terminal_width=80).output

    listed = shown.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == sorted(MODULES)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed), shown
    assert "..." not in CliRunner().invoke(commands, ["-h"], terminal_width=50).output.partition("Commands:\n")[2]
    for name in MODULES:
        explained = CliRunner().invoke(commands, [name, "-h"])
        assert explained.exit_code == 0
        assert explained.output.startswith("Usage: ")


def test_an_error_of_a_commands_import_is_not_taken_for_a_wrong_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `KeyError` in the module of a command, which is imported when it is run, is not reported as a wrong name."""
    (tmp_path / "broken_command.py").write_text("{}['absent']")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODULES, "web", "broken_command")

    assert isinstance(CliRunner().invoke(commands, ["web"]).exception, KeyError)
    unknown = CliRunner().invoke(commands, ["wbe"])
    assert unknown.exit_code == 2
    assert "No such command 'wbe'" in unknown.output


def test_the_version_is_that_of_the_package() -> None:
    """`--version` prints the version of the package, which bug reports need."""
    shown = CliRunner().invoke(commands, ["--version"], prog_name="rolling-optimizer")

    assert (shown.exit_code, shown.output) == (0, f"rolling-optimizer {version('rolling-optimizer')}\n")


@pytest.mark.no_fork
def test_the_shell_can_complete_commands_and_options(tmp_path: Path) -> None:
    """The shell completes options by `_ROLLING_OPTIMIZER_COMPLETE`, the variable that the documentation names."""
    done = rolling_optimizer(
        tmp_path,
        _ROLLING_OPTIMIZER_COMPLETE="bash_complete",
        COMP_WORDS="rolling-optimizer status --wa",
        COMP_CWORD="2",
    )

    assert done.stdout == "plain,--watch\n"


@pytest.mark.slow
@pytest.mark.no_fork
def test_colours_are_for_terminals_only_and_not_with_no_color(tmp_path: Path) -> None:
    """An error's name is red on a terminal; a file, a pipe and `NO_COLOR` get the text alone."""
    wrong = ["rollback", "1"]
    plain = rolling_optimizer(tmp_path, *wrong).stderr

    code, coloured = in_terminal(tmp_path, *wrong)
    _, uncoloured = in_terminal(tmp_path, *wrong, NO_COLOR="1")

    assert code == 1
    assert plain.startswith("rolling-optimizer: VersionMissing: ")
    assert coloured.startswith("rolling-optimizer: \x1b[31m\x1b[1mVersionMissing\x1b[0m: ")
    assert uncoloured.replace("\r\n", "\n") == plain


@pytest.mark.slow
@pytest.mark.no_fork
def test_a_terminal_shows_progress_and_a_pipe_does_not(data: Path) -> None:
    """A command that takes long draws a bar up to 100 % on stderr if that is a terminal, and nothing otherwise."""
    arguments = {"writing": ["sample", "big.json", "--symbols", "300"], "scanning": ["run", "--no-cache"]}
    for label, command in arguments.items():
        code, shown = in_terminal(data, *command)
        assert code == 0
        assert f"{label}  [" in shown
        assert "100%" in shown
        assert rolling_optimizer(data, *command, "--force").stderr == ""


@pytest.mark.parametrize(
    ("module", "argument"),
    [
        ("click", "versions"),
        ("optimizer.cli.options", "versions"),
        ("optimizer.cli.versions", "versions"),
        ("optimizer.pipeline.rollback", "versions"),
        ("optimizer.cli.bench", "-h"),
    ],
)
def test_ctrl_c_while_the_command_starts_is_one_line(tmp_path: Path, module: str, argument: str) -> None:
    """Ctrl-C while a command starts ends it with exit status 130 and one line.

    Imports take half a second, or more on a busy machine.
    """
    program = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from optimizer.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, argument],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (130, "rolling-optimizer: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--no-cache"],
        ["inspect"],
        ["sample", "made.json", "--symbols", "1"],
        ["bench", "--rounds", "1"],
        ["status"],
        ["config"],
        *([name, "--help"] for name in ("web", "trigger", "up", "demo")),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_that_need_no_celery_import_none(data: Path, redis_server: RedisServer, arguments: list[str]) -> None:
    """Commands that do not talk to workers never import Celery, and the others import it only when they do.

    The import takes 8 MB and 0.3 s.
    """
    program = (
        "import sys; sys.modules['celery'] = sys.modules['kombu'] = None; from optimizer.cli.main import main; main()"
    )
    if arguments == ["status"]:
        rolling_optimizer(data, "run", "--no-cache")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=data,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ROLLING_REDIS_URL": redis_server.url},
        check=False,
    )
    assert done.returncode == 0


@pytest.mark.parametrize("command", ["run", "inspect", "status", "config", "trigger"])
def test_a_bad_variable_is_one_line_for_every_command(data: Path, command: str) -> None:
    """A bad variable ends every command with exit status 2 and one line that names the variable and its value.

    Before it are the usage of the command, and how to get its help.
    """
    done = rolling_optimizer(data, command, ROLLING_INTERVAL_S="often")
    assert done.returncode == 2
    assert done.stderr.endswith("\n\nError: ROLLING_INTERVAL_S='often' is not a number\n")
    assert done.stderr.startswith(f"Usage: rolling-optimizer {command} ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["run", "--input", "/"], {}, "Error: --input='/' names no file"),
        (["run", "--top", "0"], {}, "Error: --top=0 is not between"),
        (["run", "--no-cache", "--input", "none.json"], {}, "none.json not found in CWD; set --input to"),
        (["inspect", "none.json"], {}, "none.json not found in CWD; set PATH to"),
        (["run", "--no-cache"], {"ROLLING_INPUT": "none.json"}, "none.json not found in CWD; set ROLLING_INPUT to"),
        (
            ["run", "--no-cache", "--source", "a"],
            {"ROLLING_SOURCES": "a=none.json; b=other.json"},
            "none.json not found in CWD; set ROLLING_SOURCES to",
        ),
    ],
)
def test_errors_name_what_the_user_has_set(
    data: Path, arguments: list[str], variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error names the option or the argument if one was given, and otherwise the variable."""
    monkeypatch.chdir(data)
    done = CliRunner().invoke(commands, arguments, env=variables)
    assert done.exit_code in (1, 2)
    assert message.replace("CWD", str(data)) in done.stderr


def test_one_redis_for_all_is_named_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If cache and broker are one Redis, `config` reports both in one clause; `status` says where it has searched."""
    monkeypatch.chdir(data)
    url = f"redis://127.0.0.1:{free_port()}/0"
    config, status = (
        CliRunner().invoke(commands, [name], env={"ROLLING_REDIS_URL": url}) for name in ("config", "status")
    )
    failed = f"rolling-optimizer: CacheUnavailable: cache and broker: Redis at {url}: Connection refused\n"
    assert config.stderr == failed
    assert f"Redis: {url}: Connection refused; files: " in status.stderr


@pytest.mark.slow
def test_commands_log_in_the_format_of_the_service(data: Path) -> None:
    """Commands log to stderr in the format of the service: as text, each line with time and level, or as JSON.

    The error that ends a command is JSON too.
    """
    variables = {"ROLLING_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    text = rolling_optimizer(data, "run", **variables)
    lines = rolling_optimizer(data, "run", "--input", "none.json", ROLLING_LOG_FORMAT="json", **variables)
    refused = rolling_optimizer(data, "config", ROLLING_LOG_FORMAT="yaml")

    assert re.fullmatch(r"\[[-\d]+ [:,\d]+: WARNING\] \[[-\w]{36}\] \[Rolling.* the cache is down, .*\n", text.stderr)
    warned, failed = map(json.loads, lines.stderr.splitlines())
    assert (warned["level"], warned["source"], warned["error"]) == ("WARNING", "none", "CacheUnavailable")
    assert (failed["level"], failed["error"], lines.returncode) == ("ERROR", "SourceMissing", 1)
    assert "ROLLING_LOG_FORMAT='yaml' is not one of text, json" in refused.stderr


@pytest.mark.slow
def test_urls_work_as_paths_do(data: Path, s3: S3Server) -> None:
    """`run` reads from and writes to a bucket, `status` and `config` use it, `inspect` and `bench` read an object."""
    place = s3.bucket / data.name
    s3.put(place / "rolling_brain.json.gz", data / "data" / "rolling_brain.json.gz")
    where = {"ROLLING_INPUT": f"{place}/rolling_brain.json.gz", "ROLLING_OUTPUT_DIR": f"{place}/out"}
    nowhere = {"ROLLING_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    options = ["--input", where["ROLLING_INPUT"], "--output-dir", where["ROLLING_OUTPUT_DIR"]]

    ran = rolling_optimizer(data, "run", "--no-cache", *options)
    status = rolling_optimizer(data, "status", **where, **nowhere)
    config = rolling_optimizer(data, "config", **where, **nowhere)
    inspect = rolling_optimizer(data, "inspect", where["ROLLING_INPUT"])
    bench = rolling_optimizer(data, "bench", "--rounds", 1, "--json", where["ROLLING_INPUT"], **nowhere)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert "6 predictions of 11 records" in ran.stdout
    assert "from files" in status.stdout
    assert "records: 11\n" in inspect.stdout
    assert where["ROLLING_OUTPUT_DIR"] in config.stdout
    assert json.loads(bench.stdout)["input"] == where["ROLLING_INPUT"]
    assert {name.partition("/")[0] for name in s3.names(place / "out")} == {
        "versions",
        "manifest.json",
        "rolling_optimized.json.gz",
        "bots_snapshot.json.gz",
        "portfolio_snapshot.json.gz",
        "symbols_index.json.gz",
    }
