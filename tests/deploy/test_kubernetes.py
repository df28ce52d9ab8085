"""deploy/kubernetes, without a cluster: the schemas of several Kubernetes versions, strictly, and that it fits the
server. The GPU overlay is checked as kustomize would give it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from opsin_server.api.middleware.paths import PROBES
from opsin_server.api.routes.health import router
from opsin_server.cli import app
from opsin_server.config import EngineConfig, ServerConfig

HOME = Path(__file__).parents[2] / "deploy/kubernetes"
VERSIONS = ("1.30", "1.34", kubernetes_validate.latest_version())
LAST_STEPS_SECONDS = 10  # after the drain: last words of streams, the engine's end
Manifest = dict[str, Any]


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge, as far as our patches go: maps by key, lists of named things by name, other lists whole."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: merged(base[key], value) if key in base else value for key, value in patch.items()}
    if isinstance(base, list) and all(isinstance(item, dict) and "name" in item for item in [*base, *patch]):
        named = {item["name"]: item for item in base}
        for item in patch:
            named[item["name"]] = merged(named.get(item["name"], {}), item)
        return list(named.values())
    return patch


def built(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` prints."""
    recipe = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(recipe) <= {"apiVersion", "kind", "resources", "patches"}, "more than this test knows"
    manifests: list[Manifest] = []
    for name in recipe["resources"]:
        path = (folder / name).resolve()
        manifests += built(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for patch in (yaml.safe_load((folder / entry["path"]).read_text()) for entry in recipe.get("patches", [])):
        (at,) = (i for i, m in enumerate(manifests) if identity(m) == identity(patch))
        manifests[at] = merged(manifests[at], patch)
    return manifests


def identity(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


@pytest.fixture(params=["cpu", "gpu"])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return built(HOME if request.param == "cpu" else HOME / "gpu")


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    return one(manifests, "Deployment")["spec"]["template"]["spec"]


def container_of(manifests: list[Manifest]) -> Manifest:
    (container,) = pod_of(manifests)["containers"]
    return container


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_agree(manifests: list[Manifest], version: str) -> None:
    assert {manifest["kind"] for manifest in manifests} == {
        "Deployment",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Service",
    }
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_see_a_typo(manifests: list[Manifest]) -> None:
    wrong = copy.deepcopy(one(manifests, "Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_file_is_used() -> None:
    for folder in (HOME, HOME / "gpu"):
        recipe = yaml.safe_load((folder / "kustomization.yaml").read_text())
        used = {"kustomization.yaml", *recipe["resources"], *(entry["path"] for entry in recipe.get("patches", []))}
        assert {path.name for path in folder.glob("*.yaml")} == used - {".."}


def test_probes_ask_routes_that_exist_and_need_no_key(manifests: list[Manifest]) -> None:
    container = container_of(manifests)
    routes = {getattr(route, "path", None) for route in router.routes}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health/ready",
        "readiness": "/health/ready",
        "liveness": "/health/live",
    }
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": ServerConfig(EngineConfig("x")).port}
    for probe in probes.values():
        assert probe["path"] in routes & PROBES
        assert probe["port"] in ports


def test_the_service_finds_the_pods(manifests: list[Manifest]) -> None:
    deployment, service = one(manifests, "Deployment"), one(manifests, "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        service["spec"]["selector"],
        deployment["spec"]["selector"]["matchLabels"],
        one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= {
        port["name"] for port in container_of(manifests)["ports"]
    }


def test_there_is_time_to_drain(manifests: list[Manifest]) -> None:
    container = container_of(manifests)
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(container["args"][container["args"].index("--drain-timeout") + 1])
    assert pause == 5
    assert pod_of(manifests)["terminationGracePeriodSeconds"] >= pause + drain + LAST_STEPS_SECONDS


def test_the_arguments_are_the_command_lines_own(manifests: list[Manifest]) -> None:
    serve = get_command(app).commands["serve"]
    context = serve.make_context("serve", ["--host", "0.0.0.0", *container_of(manifests)["args"]])
    assert context.params["host"] == "0.0.0.0"


def test_the_key_is_a_secret(manifests: list[Manifest]) -> None:
    (key,) = (entry for entry in container_of(manifests)["env"] if entry["name"] == "OPSIN_API_KEY")
    assert set(key["valueFrom"]) == {"secretKeyRef"}
    assert "optional" not in key["valueFrom"]["secretKeyRef"]


def test_it_is_confined(manifests: list[Manifest]) -> None:
    pod, container = pod_of(manifests), container_of(manifests)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert "emptyDir" in mounts["/tmp"]
    claim = one(manifests, "PersistentVolumeClaim")["metadata"]["name"]
    assert mounts["/data"]["persistentVolumeClaim"] == {"claimName": claim}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert "memory" in container["resources"]["limits"]


def test_a_gpu_is_asked_for_only_in_the_overlay() -> None:
    assert container_of(built(HOME / "gpu"))["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in container_of(built(HOME))["resources"]["limits"]
    # one GPU, no spare: the old pod goes first
    assert one(built(HOME / "gpu"), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
