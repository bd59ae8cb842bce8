"""The Kubernetes manifests: checked against the API's own schemas; each command and probe is run as a process."""

from __future__ import annotations

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from optimizer.config.environment import FILE_SUFFIX
from optimizer.config.settings import Settings, variable_name
from tests.support.kubernetes import MANIFESTS, Deployed, containers, manifests
from tests.support.processes import ROOT
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

NAMES: Final = {"worker", "beat", "watch", "web"}
# The oldest release for which there are schemas, and the newest.
VERSIONS: Final = (kubernetes_validate.utils.all_versions()[0], kubernetes_validate.latest_version())


# ---- what Kubernetes makes of the files


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", manifests(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_every_object_is_one_of_the_api(manifest: dict[str, Any], version: str) -> None:
    """Each field is known at its place and has a value of its type, in an old release of the API and in the newest."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    """The schemas are strict at any depth: a misspelt field within a container is refused."""
    manifest = next(each for each in manifests() if each["kind"] == "Deployment")
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limit"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="limit"):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_no_key_is_given_twice() -> None:
    """No mapping in the manifests has a key twice, since the second one would silently replace the first."""
    for path in MANIFESTS.glob("*.yaml"):
        for document in yaml.compose_all(path.read_text(), yaml.SafeLoader):
            nodes = [document]
            while nodes:
                node = nodes.pop()
                if isinstance(node, yaml.MappingNode):
                    keys = [key.value for key, _ in node.value]
                    assert len(keys) == len(set(keys)), f"{path.name}: {keys}"
                    nodes += [value for _, value in node.value]
                elif isinstance(node, yaml.SequenceNode):
                    nodes += node.value


def test_what_the_objects_name_is_there() -> None:
    """Each selector matches the pods of its own object alone; claims, ConfigMap, ports and mounts exist.

    The Secret is the one that the page of the deployment creates.
    """
    objects = manifests()
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    pods = {each["metadata"]["name"]: each["spec"]["template"] for each in objects if each["kind"] == "Deployment"}
    for each in objects:
        selector = each["spec"].get("selector") if each["kind"] != "ConfigMap" else None
        if selector:
            labels = selector.get("matchLabels", selector)
            found = [name for name, pod in pods.items() if labels.items() <= pod["metadata"]["labels"].items()]
            assert found == [each["metadata"]["name"]]
    secret = re.search(r"kubectl create secret generic (\S+)", (ROOT / "docs/deploy.md").read_text("utf-8"))
    assert secret
    for pod in (pod["spec"] for pod in pods.values()):
        (container,) = pod["containers"]
        claims = [each["persistentVolumeClaim"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
        assert {("PersistentVolumeClaim", claim["claimName"]) for claim in claims} <= names
        assert [each["configMapRef"]["name"] for each in container["envFrom"]] == ["rolling"]
        assert [each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each] == [secret[1]]
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        ports = {each["name"] for each in container.get("ports", ())}
        probes = [spec for key, spec in container.items() if key.endswith("Probe")]
        asked = {probe["httpGet"]["port"] for probe in probes if "httpGet" in probe}
        assert asked <= ports
    (service,) = (each for each in objects if each["kind"] == "Service")
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
    assert pods.keys() == {f"rolling-{name}" for name in NAMES}


def test_pods_are_contained() -> None:
    """No pod can gain rights, reach the cluster's API or take all memory; only the worker writes, to `/output`.

    `/tmp` can be written to in all of them.
    """
    for each in manifests():
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] == 10001
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            written = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
            assert written == (["/tmp", "/output"] if container["name"] == "worker" else ["/tmp"])


def test_settings_are_settings_and_hold_no_secret() -> None:
    """The ConfigMap's variables are settings, and those for URLs with passwords name files of the Secret."""
    (config,) = (each["data"] for each in manifests() if each["kind"] == "ConfigMap")

    for name, value in config.items():
        assert name.removesuffix(FILE_SUFFIX) in {variable_name(field) for field in Settings.__dataclass_fields__}
        assert ("URL" not in name) or (name.endswith(FILE_SUFFIX) and value.startswith("/run/secrets/rolling/"))


def test_only_a_probe_that_asks_no_other_process_may_end_a_container() -> None:
    """The web alone has a liveness probe, `/healthz`, which is also its readiness probe and needs no other process.

    So while the broker is away, or the data are stale, nothing is killed, and the web stays reachable.
    """
    ended_by = {name: spec["livenessProbe"] for name, spec in containers().items() if "livenessProbe" in spec}

    assert {name: probe["httpGet"]["path"] for name, probe in ended_by.items()} == {"web": "/healthz"}
    assert containers()["web"]["readinessProbe"]["httpGet"]["path"] == "/healthz"


# ---- the manifests' own commands and probes, as processes


@pytest.mark.slow
def test_the_manifests_are_a_whole_service(tmp_path_factory: pytest.TempPathFactory, own_redis: RedisServer) -> None:
    """Each probe fails before its container is started and passes afterwards, and a run is published and shown.

    The web also accepts a run that is sent with the token.
    """
    own_redis.url = f"redis://:pass-word@127.0.0.1:{own_redis.port}/0"
    own_redis.start("--requirepass", "pass-word")
    secret = {"broker_url": own_redis.url, "redis_url": own_redis.url, "trigger_token": "a-token"}
    probes = [(name, key) for name, spec in containers().items() for key in spec if key.endswith("Probe")]
    assert {name for name, _ in probes} == NAMES
    with (
        Deployed(tmp_path_factory.mktemp("kubernetes"), secret) as deployed,
        ThreadPoolExecutor(len(probes)) as pool,
    ):

        def failing(asked: list[tuple[str, str]]) -> list[tuple[str, str]]:
            results = pool.map(lambda probe: deployed.passes(*probe), asked)
            return [probe for probe, passes in zip(asked, results, strict=True) if not passes]

        def all_pass() -> bool:
            left[:] = failing(left)
            return deployed.check() and not left

        left = failing(probes)
        assert left == probes
        write_json(deployed.input, {"AAPL": a_record(), "MSFT": a_record(confidence=0.9)})
        for name in NAMES:
            deployed.start(name)

        wait_until(all_pass, limit_s=60, what="every probe")
        wait_until(lambda: deployed.check() and count(deployed.web_port) == 2, limit_s=60, what="the first version")
        login = {"Authorization": "Bearer a-token", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{deployed.web_port}/runs", b"{}", login)
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 202
        assert (deployed.output / "rolling_optimized.json.gz").exists()


def count(port: int) -> int | None:
    """Return how many predictions the web shows, or `None` while it does not respond."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/predictions", timeout=20) as answer:
            shown: int = json.loads(answer.read())["count"]
            return shown
    except OSError:  # HTTP errors are among them
        return None
