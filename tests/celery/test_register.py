"""`register`: our tasks in another team's Celery app, with real workers and beats; and what it leaves unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import celery
import pytest

from optimizer import Settings
from optimizer.celery import CelerySender, create_app, register
from optimizer.cli.dev.sample import write_sample
from optimizer.errors import SettingsInvalid
from tests.support.compose import ROOT
from tests.support.foreign_app import ForeignApp
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, local, write_json

RUN: Final = "tasks.optimize_rolling_data"
SCAN: Final = "tasks.scan_rolling_part"
MERGE: Final = "tasks.merge_rolling_parts"
UPDATE: Final = "tasks.update_predictions"
ENTRY: Final = "optimize-rolling-data-rolling_brain"
THEIRS: Final[dict[str, Any]] = {"theirs": {"task": "proj.add", "schedule": 60.0}}


ROUTES: Final = {"proj.*": {"queue": "theirs"}}

# ---- what is set, and when


def _no_route(*_: Any, **__: Any) -> None:
    """Route no message, as a router of the other app."""


class _Config:
    broker_url = "amqp://broker.internal//"
    task_default_queue = "default"
    task_acks_late = True
    task_ignore_result = True
    task_time_limit = 5
    beat_schedule = THEIRS
    task_routes = ROUTES


def _by_class(app: celery.Celery) -> None:
    app.config_from_object(_Config)


def _by_module(app: celery.Celery) -> None:
    module = ModuleType("proj_conf")
    module.__dict__.update({name: value for name, value in vars(_Config).items() if not name.startswith("_")})
    app.config_from_object(module)


def _by_namespace(app: celery.Celery) -> None:
    names = {f"CELERY_{name.upper()}": value for name, value in vars(_Config).items() if not name.startswith("_")}
    app.config_from_object(names, namespace="CELERY")


def _by_old_names(app: celery.Celery) -> None:
    app.config_from_object(
        {
            "BROKER_URL": _Config.broker_url,
            "CELERY_DEFAULT_QUEUE": "default",
            "CELERY_ACKS_LATE": True,
            "CELERY_IGNORE_RESULT": True,
            "CELERYD_TASK_TIME_LIMIT": 5,
            "CELERYBEAT_SCHEDULE": THEIRS,
            "CELERY_ROUTES": [ROUTES],
        }
    )


def _by_attributes(app: celery.Celery) -> None:
    app.conf.broker_url = _Config.broker_url
    app.conf.update(
        task_default_queue="default",
        task_acks_late=True,
        task_ignore_result=True,
        task_time_limit=5,
        beat_schedule=THEIRS,
        task_routes=(ROUTES, "tests.celery.test_register:_no_route"),
    )


def _queue(app: celery.Celery, name: str) -> str:
    """Return the queue of messages for a task, also of those that are sent by its name."""
    return str(app.amqp.router.route({}, name)["queue"].name)


STYLES: Final = [_by_class, _by_module, _by_namespace, _by_old_names, _by_attributes]


@pytest.mark.parametrize("when", ["before", "after", "configured", "finalized"])
@pytest.mark.parametrize("configure", STYLES)
def test_an_app_keeps_its_configuration(configure: Callable[[celery.Celery], None], when: str) -> None:
    """An app keeps its configuration, in any style, and set before or after `register`.

    Our tasks have options of their own, and the schedule gets one more entry.
    """
    app = celery.Celery("proj", set_as_current=False)
    if when != "after":
        configure(app)
    if when == "configured":
        assert app.conf.task_default_queue == "default"
    if when == "finalized":
        app.finalize()
    register(app, queue="rolling", scan_queue="scans")
    if when in ("before", "after"):
        assert not app.configured
        assert not app.finalized
    if when == "after":
        configure(app)
    assert [_queue(app, name) for name in (RUN, MERGE, UPDATE, SCAN, "proj.add")] == [
        *["rolling"] * 3,
        "scans",
        "theirs",
    ]

    tasks = app.tasks
    for name in (RUN, MERGE, UPDATE, SCAN):
        task = tasks[name]
        assert (task.acks_late, task.ignore_result, task.serializer, task.track_started) == (False, False, "json", True)
        assert (task.soft_time_limit, task.time_limit) == (300, 330)
    assert app.conf.beat_schedule[ENTRY]["options"] == {"expires": 30.0, "queue": "rolling"}
    assert app.conf.beat_schedule["theirs"] == THEIRS["theirs"]
    assert list(THEIRS) == ["theirs"]  # an object of the other app, which more apps may share
    conf = app.conf
    assert (conf.broker_url, conf.task_default_queue, conf.task_acks_late, conf.task_ignore_result) == (
        _Config.broker_url,
        "default",
        True,
        True,
    )
    assert conf.task_time_limit == 5
    assert not conf.task_queues


def test_a_schedule_and_routes_that_are_assigned_later_do_not_replace_ours() -> None:
    """A schedule and routes that are assigned after `register` are merged with ours when the app is finalized.

    This holds also for an app whose configuration has been read before.
    """
    app = celery.Celery("proj", set_as_current=False)
    assert app.conf.task_default_queue == "celery"
    register(app, queue="rolling")
    app.conf.beat_schedule = dict(THEIRS)
    app.conf.task_routes = ROUTES
    app.finalize()
    assert set(app.conf.beat_schedule) == {ENTRY, "theirs"}
    assert [_queue(app, name) for name in (RUN, "proj.add")] == ["rolling", "theirs"]


def test_queues_count_in_an_app_that_has_sent_something_before() -> None:
    """The queues of `register` apply also if the app has sent a message, for which Celery made and kept a router."""
    app = celery.Celery("proj", set_as_current=False)
    app.finalize()
    assert _queue(app, RUN) == "celery"
    register(app, queue="rolling")
    assert _queue(app, RUN) == "rolling"


def test_without_queues_the_apps_own_routes_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without queues the app's own routes apply, and our entries name no queue; an app's entry with our name stays.

    `beat=False` adds no entries, and `source` limits them to these sources.
    """
    monkeypatch.setenv("ROLLING_SOURCES", "brain=a.json; days=b/*.json")
    app = celery.Celery("proj", set_as_current=False)
    app.conf.beat_schedule = {"optimize-rolling-data-brain": THEIRS["theirs"]}
    app.conf.task_routes = {"tasks.*": {"queue": "slow"}}
    register(app)
    assert [_queue(app, name) for name in (RUN, SCAN)] == ["slow", "slow"]
    assert app.conf.beat_schedule["optimize-rolling-data-brain"] == THEIRS["theirs"]
    days = app.conf.beat_schedule["optimize-rolling-data-days"]
    assert (days["kwargs"], days["options"]) == ({"scheduled": True, "source": "days"}, {"expires": 30.0})

    other = celery.Celery("proj", set_as_current=False)
    register(other, beat=False, source="days")
    other.finalize()
    assert other.conf.beat_schedule == {}
    one = celery.Celery("proj", set_as_current=False)
    register(one, source=["days"])
    one.finalize()
    assert list(one.conf.beat_schedule) == ["optimize-rolling-data-days"]


def test_a_serializer_is_one_that_the_apps_workers_accept() -> None:
    """Our tasks use the app's own serializer if its workers refuse JSON, and JSON otherwise."""
    app = celery.Celery("proj", set_as_current=False, accept_content=["yaml"], task_serializer="yaml")
    register(app)
    assert app.tasks[RUN].serializer == "yaml"


def test_other_apps_get_no_tasks_and_the_current_app_stays() -> None:
    """Neither a registered app nor the stand-alone one adds our tasks to other apps or becomes the current app."""
    before = celery.current_app._get_current_object()
    ours = create_app()
    theirs = celery.Celery("proj", set_as_current=False)
    register(theirs)
    other = celery.Celery("other", set_as_current=False)
    for app in (ours, theirs, other):
        app.finalize()
    assert RUN in ours.tasks
    assert RUN in theirs.tasks
    assert ours.tasks[RUN] is not theirs.tasks[RUN]
    assert RUN not in other.tasks
    assert celery.current_app._get_current_object() is before


@pytest.mark.parametrize("name", [RUN, SCAN, MERGE])
def test_a_task_of_theirs_with_a_name_of_ours_is_refused_by_name(name: str) -> None:
    """`register` refuses an app that has a task with one of our names, as a module `tasks` of the app may define.

    Celery would keep the app's task, and send it the messages that are meant for ours.
    """
    app = celery.Celery("proj", set_as_current=False)
    app.task(name=name, shared=False)(_no_route)
    app.finalize()
    with pytest.raises(ValueError, match=f"has a task {name} already, {__name__}._no_route"):
        register(app)


def test_a_second_register_is_refused() -> None:
    """A second `register` of the same app is refused, since it would be unclear which queues a task has."""
    app = celery.Celery("proj", set_as_current=False)
    register(app, source="brain")
    with pytest.raises(ValueError, match=r"called before for the app 'proj'.*source=\[\.\.\.\]"):
        register(app, source="days")


def test_a_sender_needs_an_app_with_our_tasks() -> None:
    """A sender with an app that lacks our tasks fails, and the error says what to call."""
    with pytest.raises(SettingsInvalid, match=r"'proj' has no tasks of ours: call optimizer\.celery\.register\(app\)"):
        CelerySender(celery.Celery("proj", set_as_current=False)).state("x")


@pytest.mark.parametrize(
    ("configured", "variable", "is_refused"),
    [
        ("redis://h:6379/1", "redis://:secret@h/1", False),
        ("redis://h:6379/1", "redis://:secret@h/2", True),
        ("redis://h:6379/1", "redis://other/1", True),
        ("amqp://guest:guest@mq:5672//", "amqp://user:secret@mq//", False),
        ("pyamqp://mq//", "amqp://mq", False),
        ("amqp://mq/one", "amqp://user:secret@mq/two", True),
        ("amqp://mq//", "redis://:secret@mq/0", True),
        ("amqp://mq//", "nonsense://mq", True),
        ("amqp://mq//", "nonsense", True),
        ("amqp://mq//", "amqp://mq:port", True),
        ("amqp://a//;amqp://b//", "amqp://b//", False),
        (["amqp://a//", "amqp://b//"], "amqp://b//", False),
        ("redis+socket:///run/r.sock?virtual_host=2", "unix:///run/r.sock?db=2", False),
    ],
)
def test_a_broker_variable_that_differs_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, configured: Any, variable: str, is_refused: bool
) -> None:
    """A `ROLLING_BROKER_URL` that is not the app's broker is refused by name; another spelling of that broker is not.

    A different address is another program's, or a mistake. The error has no password.
    """
    monkeypatch.setenv("ROLLING_BROKER_URL", variable)
    app = celery.Celery("proj", set_as_current=False, broker=configured)
    register(app)
    if is_refused:
        with pytest.raises(SettingsInvalid, match=r"ROLLING_BROKER_URL=.* is not the broker of .*'proj'") as caught:
            app.tasks[RUN].registration.every()
        assert "secret" not in str(caught.value)
    else:
        assert [settings.source for settings in app.tasks[RUN].registration.every()] == ["rolling_brain"]


def test_a_source_that_is_not_configured_is_refused_by_name() -> None:
    """A source that is not configured is refused by its name, with the names of those that are."""
    app = celery.Celery("proj", set_as_current=False)
    register(app, source=["days", "rolling_brain"])
    with pytest.raises(SettingsInvalid, match=r"names days, .*configured: rolling_brain"):
        app.tasks[RUN].registration.every()


# ---- imports


IMPORT_ALL: Final = """
import importlib, logging, os, pkgutil, sys
import celery, celery.signals, celery.utils.dispatch
from celery.worker.control import Panel

def state():
    signals = [value for value in vars(celery.signals).values() if isinstance(value, celery.utils.dispatch.Signal)]
    loggers = {name: logging.getLogger(name).level for name in sorted(logging.root.manager.loggerDict)}
    return {
        "app": id(celery.current_app._get_current_object()),
        "receivers": [len(signal.receivers) for signal in signals],
        "levels": {name: level for name, level in loggers.items() if level},
        "environ": dict(os.environ),
        "commands": {name: id(command) for name, command in Panel.data.items()},
    }

before = state()
import optimizer
sys.argv = ["celery", "-A", "proj", "flower"]
for module in pkgutil.walk_packages(optimizer.__path__, "optimizer."):
    if module.name != "optimizer.cli.__main__":
        importlib.import_module(module.name)
        assert state() == before, module.name
assert "optimizer.celery.consumer" in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["ROLLING_GZIP_LEVEL", "ROLLING_INPT", "ROLLING_BROKER_URL"])
def test_no_import_has_an_effect(tmp_path: Path, variable: str) -> None:
    """No import of a module changes the current app, a signal, a log level, a variable or a worker's command.

    No bad variable ends the process.
    """
    environ = os.environ | {"PYTHONPATH": str(ROOT), variable: "bad"}
    code = IMPORT_ALL
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- real processes


def _files_broker(directory: Path) -> str:
    """Return the settings of a broker that is no Redis and needs no server."""
    queues = directory / "queues"
    queues.mkdir(parents=True)
    options = {"data_folder_in": str(queues), "data_folder_out": str(queues), "control_folder": str(directory / "c")}
    return f'broker_url = "filesystem://"\nbroker_transport_options = {options}'


def _redis_broker(settings: Settings) -> str:
    return f'broker_url = "{settings.redis_url[:-1]}5"'


BACKENDS: Final = {
    "off": "",
    "redis": 'result_backend = "{redis}7"',
    "redis pickled": 'result_backend = "{redis}7"\nresult_serializer = "pickle"\naccept_content = ["json", "pickle"]',
    "files": 'result_backend = "file://{directory}"',
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_run_is_sent_made_and_followed(tmp_path: Path, settings: Settings, backend: str) -> None:
    """With any result backend, over a broker that is no Redis, a run is followed to its report or its error's name."""
    write_json(settings.input, {"AAPL": a_record()})
    results = backend.format(redis=settings.redis_url[:-1], directory=tmp_path)
    config = _files_broker(tmp_path) + "\n" + results
    with ForeignApp(tmp_path / "proj", settings, config, C_FORCE_ROOT="1") as app:  # for pickle
        app.start_worker("-c", "1")
        app.wait_for_line("rolling_brain: engine")
        done = app.send()
        local(settings.input).unlink()
        failed = app.send()
        app.add(1, 2)
        assert "Traceback" not in app.text
    assert "state='done'" in done
    assert "predictions_extracted=1" in done
    assert "state='failed'" in failed
    assert "error='SourceMissing'" in failed


@pytest.mark.slow
def test_a_run_that_no_worker_begins_is_held_once_and_then_expires(tmp_path: Path, settings: Settings) -> None:
    """A run that no worker begins stays the one pending run, until its key in the cache shows that it has expired.

    Until then the same request gets its id, and one with `force` is refused.
    """
    config = _files_broker(tmp_path)
    with ForeignApp(tmp_path / "proj", settings, config) as app:
        code = """
import redis, os
from optimizer.celery import CelerySender
from optimizer.errors import RunPending
from proj import app
sender = CelerySender(app)
order = {"force": False, "accept": False, "source": "rolling_brain"}
run = sender.send(**order)
assert sender.send(**order) == run
try:
    sender.send(**order | {"force": True})
except RunPending as error:
    print("refused:", error)
print(sender.state(run).state)
client = redis.Redis.from_url(os.environ["ROLLING_REDIS_URL"])
client.pexpire("rolling:{rolling_brain}:result:" + run, 899_000)
print(sender.state(run).state, sender.state(run).error.error)
assert sender.send(**order) != run
client.close()
"""
        said = app.printed(code).splitlines()
    assert "sent without force, has not ended" in said[0]
    assert said[1:] == ["pending", "failed Expired"]


@pytest.mark.slow
def test_a_broker_that_is_away_is_one_sentence(tmp_path: Path, settings: Settings) -> None:
    """If the broker is away, sending a run fails within seconds with one sentence, without the password.

    The next request is not delayed by the first.
    """
    config = 'broker_url = "amqp://user:secret@127.0.0.1:1//"'
    with ForeignApp(tmp_path / "proj", settings, config) as app:
        code = """
from optimizer.celery import CelerySender
from optimizer.errors import CacheUnavailable
from proj import app
for _ in range(2):
    try:
        CelerySender(app).send(force=False, accept=False, source="rolling_brain")
    except CacheUnavailable as error:
        print(error)
"""
        said = app.printed(code).splitlines()
    assert len(said) == 2
    for line in said:
        assert "the broker amqp://user:**@127.0.0.1:1// cannot be reached" in line
        assert line.endswith("; is it up? Its address is broker_url of the Celery app")
        assert "secret" not in line


@pytest.mark.slow
def test_a_wrong_variable_ends_no_worker_and_no_beat(tmp_path: Path, settings: Settings) -> None:
    """With a wrong variable, worker and beat continue and log one error each at their start.

    Our task fails by name; the app's own tasks are executed, also those that beat sends.
    """
    config = (
        _redis_broker(settings) + '\nbeat_schedule = {"x": {"task": "proj.add", "schedule": 0.5, "args": [20, 22]}}'
    )
    with ForeignApp(tmp_path / "proj", settings, config, ROLLING_GZIP_LEVEL="11") as app:
        app.start_worker("-c", "1")
        app.wait_for_line(r"no run can be made.*SettingsInvalid: ROLLING_GZIP_LEVEL=11 is not between 1 and 9")
        app.printed("from proj import app; app.tasks['tasks.optimize_rolling_data'].delay()")
        app.wait_for_line(r"Optimization failed.*SettingsInvalid.*ROLLING_GZIP_LEVEL=11")
        app.start_beat()
        app.wait_for_sum(42)
        assert app.text.count("no run can be made") == 2
        assert "Traceback" not in app.text


@pytest.mark.slow
def test_the_stand_alone_apps_checks_end_no_worker_of_another_app(tmp_path: Path, settings: Settings) -> None:
    """The checks of the stand-alone app do not end another app's worker whose process uses both apps.

    There a misspelt name is a warning, and loggers keep their levels.
    """
    with ForeignApp(tmp_path / "proj", settings, _redis_broker(settings), ROLLING_INPT="x") as app:
        module = app.directory / "proj.py"
        module.write_text("from optimizer.celery.standalone import app as ours\nours.finalize()\n" + module.read_text())
        app.start("worker", app.python, "-m", "celery", "-A", "proj", "worker", "-c", "1")
        app.wait_for_line("ROLLING_INPT is not a setting, and is passed over")
        app.add(5, 6)
        assert ": engine " not in app.text


@pytest.mark.slow
def test_beat_with_its_own_scheduler_sends_ticks(tmp_path: Path, settings: Settings) -> None:
    """`PersistentScheduler`, beat's default, sends our entry as well as the app's own; a changed input is published."""
    write_json(settings.input, {"AAPL": a_record()})
    config = (
        _redis_broker(settings) + '\nbeat_schedule = {"x": {"task": "proj.add", "schedule": 0.5, "args": [20, 22]}}'
    )
    with ForeignApp(tmp_path / "proj", settings, config, ', queue="rolling"', ROLLING_INTERVAL_S="1") as app:
        app.start_worker("-c", "1", "-Q", "celery,rolling")
        app.start_beat()
        wait_until(lambda: [run.status for run in app.reader.runs(10)].count("unchanged") >= 1, what="a second tick")
        write_json(settings.input, {"TSLA": a_record()})
        wait_until(
            lambda: [record.symbol for record in app.reader.predictions().value.predictions] == ["TSLA"],
            what="the change",
        )
        app.wait_for_line("Sending due task x")
        assert "tick_taken" not in app.text


@pytest.mark.slow
@pytest.mark.parametrize("may_join", [True, False])
def test_parts_are_distributed_where_the_result_backend_can_join_them(
    tmp_path: Path, settings: Settings, may_join: bool
) -> None:
    """Parts are distributed if the result backend can join tasks; if not, the run scans them itself.

    In that case the worker says so at its start.
    """
    for number in range(3):
        write_json(tmp_path / "parts" / f"{number}.json", {f"S{number}": a_record()})
    variables = {"ROLLING_INPUT": f"{tmp_path}/parts/*.json", "ROLLING_SOURCE": "parted"}
    results = f'\nresult_backend = "{settings.redis_url[:-1]}7"' if may_join else ""
    arguments = ', queue="runs", scan_queue="scans"'
    with ForeignApp(tmp_path / "proj", settings, _redis_broker(settings) + results, arguments, **variables) as app:
        app.start_worker("-c", "1", "-Q", "celery,runs")
        if may_join:
            app.start_worker("-c", "1", "-Q", "scans", "-n", "scans@%h", name="scans")
        else:
            app.wait_for_line(r"parted: the result backend of this app, disabled://, cannot join tasks")
        state = app.send(source="parted")
        assert "parts_scanned=3" in state, app.text
        assert app.text.count("Task tasks.scan_rolling_part") == (6 if may_join else 0)  # received, and succeeded
        assert app.text.count("Task tasks.merge_rolling_parts") == (2 if may_join else 0)


@pytest.mark.slow
def test_a_sender_sees_progress_where_results_are_off(tmp_path: Path, settings: Settings) -> None:
    """A sender sees the progress of a run also in an app whose results are off, as with the stand-alone app."""
    write_sample(local(settings.input), symbols=1_000, points=4_000)
    with ForeignApp(tmp_path / "proj", settings, _files_broker(tmp_path), ROLLING_ENGINE="ijson") as app:
        app.start_worker("-c", "1")
        code = """
import json, time
from optimizer.celery import CelerySender
from proj import app
sender = CelerySender(app)
run = sender.send(force=False, accept=False, source="rolling_brain")
seen = []
while (state := sender.state(run)).state in ("pending", "running"):
    if (state.state, state.percent) not in seen:
        seen.append((state.state, state.percent))
    time.sleep(0.05)
print(json.dumps([*seen, (state.state, state.percent)]))
"""
        states = json.loads(app.printed(code))
    assert states[-1] == ["done", 100.0]
    assert any(state == "running" and percent and 0 < percent < 100 for state, percent in states)
