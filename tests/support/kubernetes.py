"""The manifests of `deploy/kubernetes` as processes: each command and each probe runs unchanged.

No cluster is needed. Mounts are replaced by directories of the test, the pod's network by loopback; the rest is used
unchanged, so that a wrong command, variable, path or probe in a manifest fails.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.ports import free_port
from tests.support.processes import ROOT, Processes, replaced

__all__ = ["MANIFESTS", "Deployed", "containers", "manifests"]

MANIFESTS: Final = ROOT / "deploy" / "kubernetes"

Object = dict[str, Any]


def manifests() -> list[Object]:
    """Every object of the manifests, in the order in which `kubectl apply -f` takes the files."""
    return [each for path in sorted(MANIFESTS.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]


def containers() -> dict[str, Object]:
    """The one container of each Deployment, by its name."""
    pods = [each["spec"]["template"]["spec"] for each in manifests() if each["kind"] == "Deployment"]
    return {container["name"]: container for pod in pods for container in pod["containers"]}


class Deployed(Processes):
    """The containers as processes, until the `with` block ends.

    Args:
        directory: The directory of the test.
        secret: The content of the Secret `rolling`, which the manifests do not hold.
    """

    def __init__(self, directory: Path, secret: Mapping[str, str]) -> None:
        super().__init__(directory)
        self.web_port = free_port()
        self._secret = secret
        self._containers = containers()
        (self._config,) = (each["data"] for each in manifests() if each["kind"] == "ConfigMap")
        self._secrets = directory / "secrets"
        self._secrets.mkdir()
        for name, value in secret.items():
            (self._secrets / name).write_text(value)

    def start(self, name: str) -> None:
        """Start a container's process."""
        container = self._containers[name]
        self.spawn(name, [self._here(word) for word in container["command"]], self._environment(container))

    def passes(self, name: str, probe: str) -> bool:
        """Whether a container passes one of its probes now."""
        container = self._containers[name]
        spec = container[probe]
        if "exec" in spec:
            command = [self._here(word) for word in spec["exec"]["command"]]
            return self.succeeds(command, self._environment(container), spec["timeoutSeconds"])
        (port,) = (each["containerPort"] for each in container["ports"] if each["name"] == spec["httpGet"]["port"])
        url = self._here(f"http://127.0.0.1:{port}{spec['httpGet']['path']}")
        try:
            with urllib.request.urlopen(url, timeout=spec["timeoutSeconds"]):
                return True
        except OSError:  # an HTTP error is an `OSError` too
            return False

    def _environment(self, container: Object) -> dict[str, str]:
        given = dict(self._config)
        for variable in container.get("env", ()):
            key = variable["valueFrom"]["secretKeyRef"]
            if key["key"] in self._secret:
                given[variable["name"]] = self._secret[key["key"]]
        here = {name: self._here(value) for name, value in given.items()}
        return {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONUNBUFFERED": "1", **here}

    def _here(self, text: str) -> str:
        return replaced(
            text,
            {
                "/input/": f"{self.input.parent}/",
                "/output": os.fspath(self.output),
                "/run/secrets/rolling": os.fspath(self._secrets),
                "/tmp/watch-alive": os.fspath(self.directory / "watch-alive"),
                "0.0.0.0": "127.0.0.1",
                "8000": str(self.web_port),
            },
        )
