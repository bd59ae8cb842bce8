"""The OpenAPI description: it is complete, has examples, and every response conforms to it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from jsonschema_rs import Draft202012Validator

import optimizer.web.trigger
from optimizer import Settings, optimize
from optimizer.cli.dev.sample import write_sample
from optimizer.web import RunState, create_app
from tests.support.rolling_files import local
from tests.support.web_apps import asking

pytestmark = pytest.mark.slow

TOKEN: Final = "made-up"
EXAMPLES: Final = 100


class NoFleet:
    """A trigger whose runs never begin."""

    def send(self, *, force: bool, accept: bool, source: str) -> str:
        """Return an id that shows the arguments."""
        assert source
        return f"7e1f0a52-3f0e-4a35-9d0c-5b8f3c6a9e{int(accept)}{int(force)}"

    def state(self, run_id: str) -> RunState:
        """Report the run as pending."""
        return RunState(run_id, "pending")


@pytest.fixture
def web_settings(settings: Settings) -> Settings:
    """Settings with a token, and a snapshot published."""
    write_sample(local(settings.input), symbols=40, points=1)
    optimize(settings)
    return replace(settings, trigger_token=TOKEN)


def test_every_operation_is_described_with_examples(web_settings: Settings) -> None:
    """Every operation has a summary, a unique id, a schema, and examples of its parameters, responses and problems.

    Each example conforms to its schema.
    """
    with asking(web_settings, NoFleet()) as client:
        description = client.get("/openapi.json").json()

    operations = [
        (path, method, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    assert {(path, method) for path, method, _ in operations} == {
        *((f"/{name}", "get") for name in ("predictions", "bots", "portfolio", "page", "status", "runs", "events")),
        *((f"/{name}", "get") for name in ("changes", "snapshot")),
        *((f"/{name}", "get") for name in ("history", "predictions/{symbol}/history")),
        *((f"/{name}", "get") for name in ("healthz", "readyz", "metrics", "predictions/{symbol}", "runs/{id}")),
        ("/predictions.csv", "get"),
        ("/runs", "post"),
    }
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)
    for path, method, operation in operations:
        assert operation["summary"], path
        good = operation["responses"]["202" if method == "post" else "200"]
        for content in good["content"].values():
            assert content["example"], path
            assert content["schema"], path
        for parameter in operation.get("parameters", ()):
            assert parameter["schema"]["examples"], (path, parameter["name"])
            for example in parameter["schema"]["examples"]:
                assert_fits(example, parameter["schema"], description)
        for status, answer in operation["responses"].items():
            for media_type, content in answer.get("content", {}).items():
                assert media_type != "application/problem+json" or content["example"], (path, status)
                assert_fits(content.get("example"), content.get("schema", {}), description)
            assert ("Retry-After" in answer.get("headers", {})) == (status in ("429", "503"))
            assert ("WWW-Authenticate" in answer.get("headers", {})) == (status == "401")
        assert "application/problem+json" in json.dumps(operation["responses"]) or path in (*("/healthz", "/metrics"),)


def assert_fits(example: object, schema: dict[str, Any], description: dict[str, Any]) -> None:
    """Check an example against its schema, whose references lead into the description."""
    validator = Draft202012Validator({**schema, "components": description["components"]})
    assert [error.message for error in validator.iter_errors(example)] == [], example


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_keeps_to_the_description(
    web_settings: Settings, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For valid and invalid requests, status, type and shape of the response are as described; none is a 500."""
    # Not at the top: this import takes a second, in each process that collects the tests.
    import schemathesis  # noqa: PLC0415
    from schemathesis.core.result import Ok  # noqa: PLC0415
    from schemathesis.python.asgi import shutdown_lifespans  # noqa: PLC0415

    monkeypatch.setattr(optimizer.web.trigger, "LONGEST_DELAY_S", 0.0)  # it tries hundreds of wrong tokens
    app = create_app(web_settings, trigger=NoFleet())
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path="/events")  # it never ends
    accepted = schema.config.checks.positive_data_acceptance
    accepted.expected_statuses = [*(accepted.expected_statuses or ()), "410"]  # like a 404, it depends on the data
    for described in schema.get_all_operations():
        assert isinstance(described, Ok)
        operation = described.ok()

        @hypothesis_settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def keeps(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})

        with suppress(Unsatisfiable):  # an operation without parameters has no invalid requests
            keeps()
    shutdown_lifespans()  # as schemathesis' plugin for pytest does, which ends the reader


@pytest.mark.parametrize("text", ["0.0", "1_0", "+1", " 1", "1 ", "1e1", "0x1", "٣", "true", ""])
def test_an_integer_is_digits(web_settings: Settings, text: str) -> None:
    """A parameter that is described as an integer takes only digits; any other text is a 422 that names it."""
    with asking(web_settings) as client:
        integers = [
            (path, parameter["name"])
            for path, methods in client.get("/openapi.json").json()["paths"].items()
            for parameter in methods.get("get", {}).get("parameters", [])
            if any(
                each.get("type") == "integer" for each in [parameter["schema"], *parameter["schema"].get("anyOf", ())]
            )
        ]
        assert len(integers) == 8, integers
        for path, name in integers:
            answer = client.get(path, params={name: text})
            assert answer.status_code == 422, (path, name)
            assert answer.json()["detail"].startswith(f"query.{name}: Input should be a valid integer")
