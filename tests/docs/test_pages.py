"""The pages are true: their commands run, their Python runs, their links lead somewhere, what they name exists.

The commands of a page are run in order, in a directory with a sample input and a published snapshot, on a real Redis.
An HTML comment on the line before a block says otherwise:

    <!-- file: PATH -->          it is written to this path of the directory, where a file may be replaced
    <!-- service: TEXT -->       it runs until the end of the page, and is up once it has printed TEXT
    <!-- output -->              (before `text`) what the commands before it print; `...` stands for lines left out
    <!-- tested: FILE::TEST -->  that test runs it
    <!-- ci -->                  .ci/run runs it
    <!-- needs: THING -->        it cannot run in a test; THING is one of `NEEDS`
"""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import click
import pytest

from optimizer import errors
from optimizer.celery.sender import CelerySender
from optimizer.cli.commands import commands
from optimizer.config.environment import FILE_SUFFIX, OWN_MARK, SECRETS, SOURCES_VARIABLE
from optimizer.config.settings import Settings, variable_name
from optimizer.models import Report, Stats
from optimizer.web import create_app
from tests.support.pages import PAGES, ROOT, Block, Sandbox, blocks, code_spans
from tests.support.redis_servers import RedisServer
from tests.support.systemd import Unit

NEEDS: Final = ("docker", "kubernetes", "network", "root")
FORBIDDEN: Final = re.compile(r"\b(whoever|nobody|somebody|that of|rooms?|houses?|the line|key card)\b", re.IGNORECASE)
# Text that operators read, besides the pages.
COMMENTED: Final = (
    "CHANGELOG.md",
    "Dockerfile",
    "docker-compose.yml",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file()),
    ".env.example",
    "Makefile",
    "mkdocs.yml",
    "docs/redis-acl.conf",
)
SOURCES: Final = (".py", ".c", ".h", ".js", ".html", ".css")
# Names that a page shows because they are no settings.
NO_SETTINGS: Final = ("ROLLING_INTERVAL", "ROLLING_REDIS_SERVICE_HOST")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.mark.slow
@every_page
def test_the_commands_and_the_python_of_a_page_run(page: Path, tmp_path: Path, own_redis: RedisServer) -> None:
    """Every block without a marker exits with 0, and the output that a page shows is printed, apart from its digits."""
    runnable = [
        block for block in blocks(page) if block.language in ("sh", "python") or block.marker in ("output", "file")
    ]
    if not any(block.marker in ("", "service") for block in runnable):
        return
    own_redis.start()
    with Sandbox(tmp_path / "page", own_redis.url, of_a_team=page.parent.name == "integrate") as sandbox:
        for block in runnable:
            if block.marker == "output":
                check_output(block, sandbox.printed)
            elif block.marker == "file":
                sandbox.write(block)
            elif block.marker == "service":
                sandbox.start(block)
            elif not block.marker:
                sandbox.run(block)
        sandbox.check()


@every_page
def test_commands_that_do_not_run_here_say_where_they_do(page: Path) -> None:
    """A marker names a test that exists, a command of `.ci/run`, or something that a test cannot have."""
    for block in blocks(page):
        assert block.language, f"{block} names no language"
        assert block.language not in ("bash", "console", "shell"), f"{block}: commands are in blocks of `sh`"
        if block.marker == "needs":
            assert block.argument in NEEDS, block
        elif block.marker == "tested":
            path, _, name = block.argument.partition("::")
            assert name in {node.name for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)}, block
        elif block.marker == "ci":
            ran = (ROOT / ".ci/run").read_text()
            for command in block.commands:
                assert re.search(rf"\b{re.escape(command)}$", ran, re.MULTILINE), f"{block}: .ci/run has no {command}"
        else:
            assert block.marker in ("", "service", "output", "file"), f"{block}: {block.marker} is not a marker"
            assert block.argument or block.marker not in ("service", "file"), block


@every_page
def test_inline_commands_exist(page: Path) -> None:
    """`rolling-optimizer COMMAND --option` and `make TARGET` in running text name what exists."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for span in code_spans(page):
        words = span.split()
        if words[0] == "make" and len(words) > 1:
            assert words[1] in targets, span
        elif words[0] == "rolling-optimizer" and len(words) > 1:
            command = commands.get_command(click.Context(commands), words[1])
            assert command is not None, span
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words[2:] if word.startswith("--")} <= options, span


@every_page
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    """Relative links, pictures, their anchors, and paths of this repository in inline code lead to what exists."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = unquote(target).partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
    for span in code_spans(page):
        if re.fullmatch(r"(optimizer|tests|tasks|benchmarks|docs)/[\w./-]+", span):
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("path", [*PAGES, *(ROOT / name for name in COMMENTED)], ids=lambda path: path.name)
def test_words(path: Path) -> None:
    """Pages and the other texts for operators are in plain English.

    They have none of the words that this project once had for people and for its own structure.
    """
    assert FORBIDDEN.findall(path.read_text("utf-8")) == []


@pytest.mark.parametrize("directory", ["optimizer", "tasks", "tests", "benchmarks"])
def test_words_of_the_code(directory: str) -> None:
    """Comments, docstrings and messages in the code have none of the words that pages must not have."""
    for path in (ROOT / directory).rglob("*"):
        if path.suffix in SOURCES and path != Path(__file__) and "node_modules" not in path.parts:
            assert FORBIDDEN.findall(path.read_text("utf-8")) == [], path


def test_the_readme_is_short() -> None:
    """The README has at most 900 words; the rest has pages of its own."""
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900


def test_every_setting_has_a_row_with_its_default() -> None:
    """`configuration.md` lists the settings that exist, and no others.

    The row of a setting whose default is not empty has that default.
    """
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    rows = re.findall(r"^\| ((?:`ROLLING_\w+`(?:, )?)+) \| (.+?) \|", page, re.MULTILINE)
    described = {name: default for names, default in rows for name in re.findall(r"\w+", names)}

    assert set(described) == settings_variables()
    for setting in fields(Settings):
        if setting.default not in ("", None):
            default = f"{setting.default:g}" if isinstance(setting.default, float) else str(setting.default)
            assert described[variable_name(setting.name)].strip("`") == default


@every_page
def test_variables_in_pages_exist(page: Path) -> None:
    """Each name in a page that looks like a setting is one, or the setting of one source."""
    for name in re.findall(r"\bROLLING_[A-Z][A-Z_]*[A-Z]\b", page.read_text("utf-8")):
        own = name.removeprefix("ROLLING_").partition(OWN_MARK)[2]
        is_setting = name in settings_variables() or f"ROLLING_{own}" in settings_variables()
        assert is_setting or name in NO_SETTINGS, name


def test_every_error_has_a_row() -> None:
    """`operations.md` has a row that says what to do for each error of the tree, and for no other."""
    listed = names_of_rows("docs/operations.md", "### A run fails with an error", "\n### ")
    assert listed == set(errors.__all__) - {"RollingError", "SourceError"}


def test_every_member_of_a_report_has_a_row() -> None:
    """`operations.md` has a row for each member of a report and each statistic of a scan, and no other."""
    listed = names_of_rows("docs/operations.md", "### The report of a run", "\n## ")
    assert listed == {*Report.__struct_fields__, *Stats.__struct_fields__}


def test_every_warning_is_explained() -> None:
    """`operations.md` has the words of each warning and error that is logged, so that a search for a line finds it."""
    page = (ROOT / "docs/operations.md").read_text("utf-8")
    for path in sorted((ROOT / "optimizer").rglob("*.py")):
        for text in warnings_in(tree(str(path))):
            longest = max(text.removeprefix("[RollingOptimizer] ").removeprefix("⚠️ ").split("%s"), key=len)
            words = re.split("[:;,]", longest.strip(" :,"))[0]
            assert words in page, f"{path.name}: {words}"


def test_every_metric_every_alert_and_every_span_has_a_row() -> None:
    """`operations.md` has each metric, alert and span, and no other alert or span.

    Names of metrics that the code puts together are in other tables.
    """
    page = (ROOT / "docs/operations.md").read_text("utf-8")
    metrics = (ROOT / "optimizer/web/metrics.py").read_text("utf-8")
    described = set(re.findall(r"`rolling_(\w+)", page))
    assert set(re.findall(r'(?:_gauge|Metric)\(\s*"(\w+)"', metrics)) - described == set()
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8")
    assert names_of_rows("docs/operations.md", "| alert |", "\n\n") == set(re.findall(r"- alert: (\w+)", alerts))
    code = "".join(path.read_text("utf-8") for path in (ROOT / "optimizer").rglob("*.py"))
    assert set(re.findall(r"^\| `rolling\.(\w+)`", page, re.MULTILINE)) == set(re.findall(r'\bspan\("(\w+)"', code))


def test_the_readme_shows_what_the_pages_and_the_units_show() -> None:
    """The schedule in the README is also in a page of `docs/`.

    The README's systemd unit has the command, directory, restart and stop settings of the shipped one.
    """
    texts = [block.text for block in blocks(ROOT / "README.md")]
    (schedule,) = (text for text in texts if "beat_schedule" in text)
    (unit,) = (text for text in texts if "[Service]" in text)

    assert any(schedule in page.read_text("utf-8") for page in PAGES if page.parent.name == "docs")
    shipped = Unit("rolling-worker")
    for key in ("WorkingDirectory", "Restart", "KillMode", "TimeoutStopSec"):
        assert f"\n{key}={shipped.last(key)}\n" in unit
    assert re.findall(r"\nExecStart=(.+)", unit)[0] == shipped.last("ExecStart").removesuffix(" -n worker@%H")


def test_every_route_is_described() -> None:
    """`http.md` names each route of the API with its method, and no other."""
    page = (ROOT / "docs/http.md").read_text("utf-8")
    table = page.partition("## Routes")[2].partition("\n## ")[0]
    listed = {route.partition("?")[0] for route in re.findall(r"`((?:GET|POST) /[^`]*)`", table)}
    served: dict[str, Any] = create_app(Settings(trigger_token="a token"), trigger=CelerySender()).openapi()["paths"]

    assert listed == {
        f"{method.upper()} {path}"
        for path, methods in served.items()
        for method in methods
        if not path.startswith("/sources/")
    }


def check_output(block: Block, printed: str) -> None:
    """Compare the lines that a page shows with those that were printed; digits stand for any digits."""
    masked = [mask(line) for line in printed.splitlines()]
    for line in block.text.splitlines():
        assert line.strip() == "..." or mask(line) in masked, f"{block} shows {line!r}, printed was:\n{printed}"


def mask(line: str) -> str:
    """A line with each number as `0`, and each run of blanks as one."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*", "0", line))


def tree(path: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse((ROOT / path).read_text("utf-8"))


def warnings_in(module: ast.Module) -> list[str]:
    """The formats of all warnings and errors that a module logs."""
    return [
        node.args[0].value
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).replace("_log()", "_log") in ("_log.warning", "_log.error", "_log.exception")
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]


def settings_variables() -> set[str]:
    """Every variable that the package reads."""
    files = {secret + FILE_SUFFIX for secret in SECRETS}
    return {variable_name(field.name) for field in fields(Settings)} | {SOURCES_VARIABLE} | files


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}


def names_of_rows(page: str, begin: str, end: str) -> set[str]:
    """The names in backticks in the first cells of the tables that a page has between two texts."""
    tables = (ROOT / page).read_text("utf-8").partition(begin)[2].partition(end)[0]
    cells = re.findall(r"^\| (`.+?) \|", tables, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
