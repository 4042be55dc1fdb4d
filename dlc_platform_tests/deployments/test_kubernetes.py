"""The Kubernetes deployment, against the schemas that Kubernetes and Dagster's launcher publish; there is no cluster.

The chart's values are checked against `chart_values.yaml`; with the chart itself the workflow `ci` renders them.
"""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from jsonschema import Draft202012Validator

from dlc_platform_tests.deployments.conftest import DEPLOYMENTS

FOLDER = DEPLOYMENTS / "kubernetes"
#: The oldest that its makers still mend.
KUBERNETES = "1.33"
MANIFESTS = [
    (f"{file.name}-{document['kind']}-{document['metadata']['name']}", document)
    for file in sorted(FOLDER.glob("*.yaml"))
    if file.name != "values.yaml"
    for document in yaml.safe_load_all(file.read_text())
]


def values() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "values.yaml").read_text())


def routes() -> dict[str, dict[str, Any]]:
    """The routes of the run launcher by their names."""
    launcher = values()["runLauncher"]["config"]["customRunLauncher"]
    return {route["name"]: route for route in launcher["config"]["routes"]}


def pods() -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for _, one in MANIFESTS if one["kind"] in ("Deployment", "Job")]


@pytest.mark.parametrize("manifest", [one for _, one in MANIFESTS], ids=[name for name, _ in MANIFESTS])
def test_the_manifests_are_those_of_kubernetes(manifest: dict[str, Any]):
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "dlc-platform"


def test_the_values_are_those_of_the_chart():
    schema = yaml.safe_load(Path(__file__).with_name("chart_values.yaml").read_text())
    Draft202012Validator.check_schema(schema)
    problems = Draft202012Validator(schema).iter_errors(values())
    assert [f"{'.'.join(map(str, one.path))}: {one.message}" for one in problems] == []


def test_runs_of_the_pool_gpu_go_to_nodes_with_gpus_and_the_others_anywhere():
    assert list(routes()) == ["gpu", "cpu"]
    assert routes()["gpu"]["pool"] == "gpu"
    assert "pool" not in routes()["cpu"]


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """Of a cluster that is not there, and that nothing here asks for anything."""
    file = tmp_path / "kubeconfig"
    cluster = {"name": "none", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "none", "context": {"cluster": "none", "user": "none"}}
    known = {"clusters": [cluster], "contexts": [context], "users": [{"name": "none", "user": {"token": "none"}}]}
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "none", **known}))
    return file


@pytest.mark.parametrize("route", ["gpu", "cpu"])
def test_dagsters_launcher_makes_pods_of_it_that_kubernetes_takes(route: str, kubeconfig: Path):
    from dagster_k8s import K8sRunLauncher
    from dagster_k8s.job import construct_dagster_k8s_job
    from kubernetes.client import ApiClient

    given = routes()[route]["launcher"]
    assert (given["module"], given["class"]) == ("dagster_k8s", "K8sRunLauncher")
    config = given["config"] | {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    processed = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), config)
    assert processed.success, processed.errors
    launcher = K8sRunLauncher.from_config_value(None, processed.value)
    run = dg.DagsterRun(job_name="estimate")
    context = launcher.get_container_context_for_run(run)
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config("dlc-platform:v1", launcher),
        ["dagster", "api", "execute_run"],
        "dagster-run-1",
        user_defined_k8s_config=context.run_k8s_config,
        component="run_worker",
    )
    manifest = ApiClient().sanitize_for_serialization(job)
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "dlc-platform:v1"
    limits = container["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == ("1" if route == "gpu" else None)
    assert ("nodeSelector" in pod) == (route == "gpu")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/raw"]["readOnly"] and mounts["/projects"]["readOnly"]
    # Every mount has its volume, and passwords come from secrets.
    assert {mount["name"] for mount in mounts.values()} <= {volume["name"] for volume in pod["volumes"]}
    (password,) = [one for one in container["env"] if "PASSWORD" in one["name"]]
    assert password["valueFrom"]["secretKeyRef"]["name"] == "dlc-platform-dagster"


def test_the_router_takes_its_configuration():
    router = pytest.importorskip("dlc_platform.launchers.routing_run_launcher")
    config = values()["runLauncher"]["config"]["customRunLauncher"]["config"]
    processed = process_config(resolve_to_config_type(router.RoutingRunLauncher.config_type()), config)
    assert processed.success, processed.errors


def test_no_pod_has_more_than_it_needs():
    described = values()
    services = [
        described["dagsterWebserver"],
        described["dagsterDaemon"],
        *described["dagster-user-deployments"]["deployments"],
    ]
    contexts = [(one["podSecurityContext"], one["securityContext"]) for one in services]
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        containers = [*pod.get("initContainers", []), *pod["containers"]]
        for container in containers:
            context = dict(container["securityContext"])
            if container["image"].startswith("caddy:"):
                # Its program has this one on its file, and does not start where it may not have it.
                assert context["capabilities"].pop("add") == ["NET_BIND_SERVICE"]
            contexts.append((pod["securityContext"], context))
    for of_pod, of_container in contexts:
        assert of_pod["runAsNonRoot"] is True
        assert of_container == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    # The webserver, which people reach, knows nothing of the catalogue.
    assert "platform_url" not in json.dumps(described["dagsterWebserver"])
    assert "password" not in json.dumps(described["postgresql"])
