"""The alerts of `deploy/prometheus`: each fires for its own problem and for nothing else, and clears afterwards."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from optimizer import Settings, optimize
from optimizer.cache.client import CacheClient
from optimizer.cache.heartbeats import Heartbeat, Heartbeats
from optimizer.errors import SourceMissing
from tests.support.compose import COMPOSE_FILE, ROOT
from tests.support.prometheus import RULES, Prometheus, promtool
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.web_apps import WebServer

pytestmark = pytest.mark.slow

GRAFANA: Final = ROOT / "deploy" / "grafana"
DASHBOARD: Final = json.loads((GRAFANA / "dashboard.json").read_text())
PAGE: Final = {"severity": "page"}
TICKET: Final = {"severity": "ticket"}

# By alert: series of one source, each with its values in ten good minutes, then twenty bad ones, then ten good ones;
# the labels of the alert; and after how many bad minutes it fires.
CASES: Final[dict[str, tuple[dict[str, tuple[float, float, float]], dict[str, str], float]]] = {
    "RollingDataStale": ({"rolling_snapshot_stale": (0, 1, 0)}, PAGE, 1),
    "RollingEngineSilent": ({"rolling_input_stale": (0, 1, 0)}, PAGE, 1),
    # The label `error` is not part of the alert: it may differ from run to run.
    "RollingRunsFail": ({'rolling_runs_failed_in_a_row{error="SourceTorn"}': (2, 3, 0)}, PAGE, 0),
    "RollingNoWorker": ({"rolling_workers": (2, 0, 1)}, PAGE, 1),
    "RollingNoBeat": ({"rolling_beats": (1, 0, 1)}, PAGE, 1),
    "RollingRedisAway": ({'rolling_cache_up{instance="a"}': (1, 0, 1)}, {**PAGE, "instance": "a"}, 1),
    "RollingRejectsRise": (
        {"rolling_records_rejected": (50, 62, 55), "rolling_records_seen": (1_000, 1_000, 1_000)},
        {**TICKET, "kind": "records"},
        0,
    ),
    "RollingMemoryNearLimit": (
        {"rolling_last_scan_peak_memory_bytes": (79, 81, 80), "rolling_worker_memory_limit_bytes": (100, 100, 100)},
        TICKET,
        0,
    ),
    "RollingRedisMemoryNearLimit": (
        {"rolling_cache_memory_bytes": (79, 81, 80), "rolling_cache_memory_limit_bytes": (100, 100, 100)},
        TICKET,
        5,
    ),
    "RollingGuardRefuses": ({"rolling_guard_refused": (0, 1, 0)}, TICKET, 0),
}


def test_the_files_are_right_by_prometheus_own_tool(tmp_path: Path) -> None:
    """`promtool` accepts the shipped rules and both configurations, whose job has the name that an alert refers to.

    One configuration is the shipped file, the other is for Kubernetes, from `docs/deploy.md`.
    """
    (on_kubernetes,) = re.findall(r"```yaml\n(scrape_configs:.+?)```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL)
    # Debian builds Prometheus without the discovery in Kubernetes, so a fixed target replaces it.
    found, targets = "kubernetes_sd_configs: [{role: endpointslice}]", 'static_configs: [{targets: ["pod:8000"]}]'
    assert found in on_kubernetes
    (tmp_path / "kubernetes.yml").write_text(on_kubernetes.replace(found, targets))
    assert "SUCCESS" in promtool("check", "rules", str(RULES))
    for path in (RULES.parent / "prometheus.yml", tmp_path / "kubernetes.yml"):
        assert "SUCCESS" in promtool("check", "config", str(path))
        (job,) = yaml.safe_load(path.read_text())["scrape_configs"]
        assert f'up{{job="{job["job_name"]}"}}' in RULES.read_text()


def test_each_alert_fires_in_its_time_and_clears(tmp_path: Path) -> None:
    """Each alert fires after its time for a source with the problem, not for a healthy one, and clears afterwards.

    Several processes that report the same problem make one alert.
    """
    tests = [a_test(name, *case) for name, case in CASES.items()] + [BOTS, WEB_DOWN, WEB_GONE, PINNED, NEVER_THERE]
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}))
    promtool("test", "rules", str(tmp_path / "tests.yml"))
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules if "alert" in rule} == {*CASES, "RollingWebDown", "RollingPinned"}


def test_each_alert_leads_to_an_entry_of_the_documentation() -> None:
    """The runbook of each alert names a page and the anchor of a heading that exists there."""
    for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]:
        if "alert" in rule:
            page, _, anchor = rule["annotations"]["runbook"].partition("#")
            headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, anchor


def test_the_dashboard_has_what_the_profile_mounts() -> None:
    """Grafana has the profile's Prometheus as its data source, and the dashboard is mounted where Grafana looks.

    Each panel has a place of its own: no two overlap.
    """
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert [(each["type"], each["url"]) for each in provisioned] == [("prometheus", "http://prometheus:9090")]
    grafana = yaml.safe_load(COMPOSE_FILE.read_text())["services"]["grafana"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/rolling-optimizer.yml").read_text())["providers"]
    assert f"./deploy/grafana/dashboard.json:{provider['options']['path']}/dashboard.json:ro" in grafana["volumes"]
    places = [
        (column, row)
        for panel in DASHBOARD["panels"]
        for at in [panel["gridPos"]]
        for column in range(at["x"], at["x"] + at["w"])
        for row in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(column for column, _ in places) < 24


def test_alerts_fire_and_clear_on_the_real_metrics(tmp_path: Path, settings: Settings) -> None:
    """In a real Prometheus that scrapes a web server, alerts fire as faults begin, step by step, and clear afterwards.

    Minutes are fractions of a second here; the rest is as it is shipped. By the end, each panel of the dashboard has
    had something to show.
    """
    settings = replace(settings, interval_s=1.0, max_input_age_s=3.0, max_rejected_percent=90)
    variables = {"ROLLING_INTERVAL_S": "1", "ROLLING_MAX_INPUT_AGE_S": "3"}
    queue = [f"rolling.{settings.source}"]
    worker, beat = (Heartbeat(kind, "one", 60.0, queue, 10**9) for kind in ("worker", "beat"))
    small = Heartbeat("worker", "small", 60.0, queue, 10**6)
    with ExitStack() as stack:
        cache = stack.enter_context(closing(CacheClient(settings.redis_url, settings.source, 1.0)))
        heartbeats = Heartbeats(cache)

        def live(*, rejected: int = 0) -> None:
            write_json(
                settings.input, {f"S{each}": a_record(confidence=7 if each < rejected else 0.5) for each in range(9)}
            )
            optimize(settings, force=True)

        for heartbeat in (worker, beat):
            heartbeats.tell(heartbeat)
        live()
        web = stack.enter_context(WebServer(tmp_path, settings, **variables))
        promtool("check", "metrics", given=web.get("/metrics")[2].decode())
        prometheus = stack.enter_context(Prometheus(tmp_path, f"127.0.0.1:{web.port}"))

        def becomes(*alerts: str, **options: int) -> dict[str, dict[str, str]]:
            def is_so() -> bool:
                if "rejected" in options:
                    live(**options)
                return set(prometheus.firing()) == set(alerts)

            wait_until(is_so, what=f"{alerts} in place of {set(prometheus.firing())}")
            return prometheus.firing()

        wait_until(lambda: prometheus.query("source_kind:rolling_rejected:ratio"), what="the first values")
        becomes(rejected=0)
        empty = {
            target["expr"].replace("$source", ".*").replace("$__rate_interval", "5s")
            for panel in DASHBOARD["panels"]
            for target in panel["targets"]
        }
        empty = {expression for expression in empty if not prometheus.query(expression)}
        heartbeats.tell(small)
        shown = becomes("RollingMemoryNearLimit", "RollingRejectsRise", rejected=3)
        assert "33.33% of the records are rejected" in shown["RollingRejectsRise"]["summary"]
        for heartbeat in (worker, small, beat):
            heartbeats.leave(heartbeat)
        local(settings.input).unlink()
        for _ in range(3):
            with suppress(SourceMissing):
                optimize(settings)
        dead = ("RollingDataStale", "RollingEngineSilent", "RollingRunsFail", "RollingNoWorker", "RollingNoBeat")
        shown = becomes(*dead, "RollingRejectsRise")
        failing = f"{settings.source}: the last 3 runs have failed, the last one by SourceMissing"
        assert shown["RollingRunsFail"]["summary"] == failing
        # A server of the tests has no maxmemory, and so no limit to show.
        empty = {expression for expression in empty if not prometheus.query(expression)}
        assert empty == {'max by (source) (rolling_cache_memory_limit_bytes{source=~".*"})'}
        for heartbeat in (worker, beat):
            heartbeats.tell(heartbeat)
        becomes(rejected=0)
        web.stop()
        shown = becomes("RollingWebDown")
        silent = f"127.0.0.1:{web.port} does not answer: what it would say of all sources is unknown"
        assert shown["RollingWebDown"]["summary"] == silent


# ---- what `promtool test rules` reads

WEB: Final = 'up{job="rolling-optimizer",instance="a"}'


def a_test(
    name: str, series: dict[str, tuple[float, float, float]], labels: dict[str, str], after_min: float
) -> dict[str, Any]:
    """Make a test of an alert: ten good minutes, twenty bad ones and ten good ones, beside a source that stays good."""
    expected = {"alertname": name, "alertstate": "firing", "source": "brain", **labels}
    inputs = []
    for metric, (good, bad, again) in series.items():
        # Two processes report the same values; a series whose `instance` the alert keeps is of one process.
        for instance in ("a",) if "instance=" in metric else ("a", "b"):
            own = "" if "instance=" in metric else f'instance="{instance}"'
            course = f"{good}x39 {bad}x79 {again}x39"
            inputs += [
                {"series": _with(metric, own, 'source="brain"'), "values": course},
                {"series": _with(metric, own, 'source="calm"'), "values": f"{good}x159"},
            ]
    before, first, last, clear = 10 + after_min - 0.25, 10.25 + after_min, 29.5, 30.5
    times = [(9.75, False), *([(before, False)] if after_min else []), (first, True), (last, True), (clear, False)]
    return _of(inputs, times, expected)


def _with(metric: str, *labels: str) -> str:
    name, _, own = metric.rstrip("}").partition("{")
    return f"{name}{{{','.join(filter(None, (own, *labels)))}}}"


def _of(inputs: list[dict[str, str]], times: list[tuple[float, bool]], labels: dict[str, str]) -> dict[str, Any]:
    """Make a test: at each of these minutes this alert fires, or no alert does."""
    shown = "ALERTS{" + ", ".join(f'{name}="{text}"' for name, text in labels.items()) + "}"
    if not any(each["series"].startswith("up{") for each in inputs):
        inputs = [*inputs, {"series": WEB, "values": "1x3100"}]
    return {
        "name": labels["alertname"],
        "interval": "15s",
        "input_series": inputs,
        "promql_expr_test": [
            {
                "expr": 'ALERTS{alertstate="firing"}',
                "eval_time": f"{round(60 * minute)}s",
                "exp_samples": [{"labels": shown, "value": 1}] if fires else [],
            }
            for minute, fires in times
        ],
    }


BOTS: Final = a_test(
    "RollingRejectsRise",
    {"rolling_bots_rejected": (0, 1, 0), "rolling_bots_seen": (20, 20, 20)},
    {**TICKET, "kind": "bots"},
    0,
)
WEB_DOWN: Final = _of(
    [{"series": WEB, "values": "1x39 0x39 1x39"}],
    [(9.75, False), (10.75, False), (11.25, True), (19.5, True), (20.5, False)],
    {"alertname": "RollingWebDown", "alertstate": "firing", "job": "rolling-optimizer", "instance": "a", **PAGE},
)
# The cluster has removed the last pod.
WEB_GONE: Final = _of(
    [{"series": WEB, "values": "1x39 stale _x38 1x39"}],
    [(9.75, False), (10.75, False), (11.25, True), (19.5, True), (20.5, False)],
    {"alertname": "RollingWebDown", "alertstate": "firing", "job": "rolling-optimizer", **PAGE},
)
# The web restarts a minute before the twelve hours are over.
PINNED: Final = _of(
    [
        {
            "series": 'rolling_snapshot_pinned_timestamp_seconds{source="brain",by="ops@host"}',
            "values": "0x2872 stale _x3 0x123 stale",
        }
    ],
    [(60, False), (719, False), (721, True), (749, True), (751, False)],
    {"alertname": "RollingPinned", "alertstate": "firing", "source": "brain", "by": "ops@host", **TICKET},
)
# Without Celery there are no workers and no beats, and no alert reports them as missing.
NEVER_THERE: Final = _of(
    [{"series": f'rolling_{kind}{{source="brain"}}', "values": "0x200"} for kind in ("workers", "beats")],
    [(1, False), (20, False), (40, False)],
    {"alertname": "none"},
)
