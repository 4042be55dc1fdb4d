"""The Kubernetes deployment, against the schemas that Kubernetes and Dagster's launcher publish; there is no cluster.

The chart's values are checked against `chart_values.yaml`; with the chart itself the workflow `ci` renders them.
"""

import contextlib
import http.client
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from jsonschema import Draft202012Validator

from dlc_platform.web.gate import host_of
from dlc_platform_tests.deployments.conftest import DEPLOYMENTS
from dlc_platform_tests.orchestration.up import plain_environment, wait_for

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


def test_runs_of_the_pool_gpu_go_to_nodes_with_gpus():
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
def test_dagsters_launcher_makes_pods_that_kubernetes_takes(route: str, kubeconfig: Path):
    from dagster_k8s import K8sRunLauncher
    from dagster_k8s.job import construct_dagster_k8s_job
    from kubernetes.client import ApiClient

    given = routes()[route]["launcher"]
    assert (given["module"], given["class"]) == ("dagster_k8s", "K8sRunLauncher")
    config = given["config"] | {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    processed = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), config)
    assert processed.success, processed.errors
    make: Any = K8sRunLauncher.from_config_value
    launcher = make(None, processed.value)
    run = dg.DagsterRun(job_name="estimate")
    context = launcher.get_container_context_for_run(run)
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config("dlc-platform:v1", launcher),
        ["dagster", "api", "execute_run"],
        "dagster-run-1",
        user_defined_k8s_config=context.run_k8s_config,
        component="run_worker",
    )
    manifest: Any = ApiClient().sanitize_for_serialization(job)
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


def test_the_proxy_signs_on_as_that_of_the_workstation_does():
    compose = yaml.safe_load((DEPLOYMENTS / "workstation" / "compose.yaml").read_text())["services"]["sign-on"]
    (deployment,) = [one for _, one in MANIFESTS if one["kind"] == "Deployment"]
    (container,) = [one for one in deployment["spec"]["template"]["spec"]["containers"] if one["name"] == "sign-on"]
    here = {one["name"]: one["value"] for one in container["env"]}
    assert here.keys() == compose["environment"].keys()
    # It is reached from its own pod alone.
    assert here.pop("OAUTH2_PROXY_HTTP_ADDRESS") == "127.0.0.1:4180"
    for name, value in here.items():
        said = re.sub(r"\$\{\w+:-(.*)\}", r"\1", compose["environment"][name])
        assert value == said or said.startswith("${"), name


#: Doubles of kubectl and helm: they write down what they were asked for, and keep what was applied in a folder. A job
#: is as JOB says, and helm ends with the code in HELM.
KUBECTL = r"""#!/bin/sh
echo "kubectl $*" >> "$CALLS"
case "$*" in
    *"create configmap"*--from-literal=*)
        printf 'kind: ConfigMap\nmetadata: {name: %s}\ndata: {digest: "%s"}\n' "$5" "${6##*=}"
        ;;
    *"get configmap"*) sed -n 's/^data: {digest: "\(.*\)"}$/\1/p' "$APPLIED/$5.yaml" 2> /dev/null || true ;;
    *"get pods"*) echo "$PODS" ;;
    *"get secret"*) [ ! -f "$APPLIED/$5.secret" ] || echo "secret/$5" ;;
    *"create secret generic dlc-platform-web"*)
        for given in "$@"; do
            case "$given" in --from-file=*)
                cat "${given#*=}" >> "$APPLIED/$6.secret"
                ls -l "${given#*=}" >> "$APPLIED/modes"
                ;;
            esac
        done
        ;;
    *"create configmap"*)
        file=$(printf '%s' "$6" | sed 's/.*=//')
        printf 'kind: ConfigMap\nmetadata: {name: %s}\ndata:\n  it: |\n' "$5"
        sed 's/^/    /' "$file"
        ;;
    *"apply --filename -")
        cat > "$APPLIED/new"
        name=$(grep --max-count 1 --only-matching 'name: [A-Za-z0-9-]*' "$APPLIED/new" | sed 's/.*: //')
        mv "$APPLIED/new" "$APPLIED/$name.yaml"
        ;;
    *"get job"*conditions*type*) echo "$JOB" ;;
esac
"""
#: And what makes secrets reads the files that it is given.
READING = r"""
case "$*" in
    *"create secret"*)
        for given in "$@"; do
            case "$given" in --from-file=* | --cert=* | --key=*) cat "${given##*=}" > /dev/null || exit 1 ;; esac
        done
        ;;
esac
"""
HELM = r"""#!/bin/sh
echo "helm $*" >> "$CALLS"
while [ "$1" != --values ]; do shift; done
cp "$2" "$APPLIED/values.yaml"
exit "$HELM"
"""


class Cluster:
    """Doubles of a cluster, and the script that brings a version to it."""

    def __init__(self, folder: Path):
        self.lab_file = folder / "lab.yaml"
        self.lab_file.write_text("name: a\n")
        self.applied = folder / "applied"
        self.applied.mkdir()
        for name, text in (("kubectl", KUBECTL), ("helm", HELM)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self._calls = folder / "calls"
        self._environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "CALLS": str(self._calls),
            "APPLIED": str(self.applied),
            "IMAGE": "registry/dlc-platform",
            "LAB_FILE": str(self.lab_file),
            "SIGN_ON_IMAGE": "registry/oauth2-proxy:v7",
        }

    def deploy(
        self,
        job: str = "SuccessCriteriaMet Complete",
        helm: int = 0,
        poll: int = 0,
        lab_file: str | None = None,
        image: str = "",
    ) -> subprocess.Popen[str]:
        """Start the script; its job's pod has an image with the digest that `image` says."""
        given = {} if lab_file is None else {"LAB_FILE": lab_file}
        given["PODS"] = f"registry/other@sha256:{64 * 'f'} registry/dlc-platform{image}" if image else ""
        return subprocess.Popen(
            [FOLDER / "deploy", "v2"],
            env=self._environment | {"JOB": job, "HELM": str(helm), "POLL_SECONDS": str(poll)} | given,
            cwd=self.lab_file.parent,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    def run(self, commands: str) -> None:
        subprocess.run(["sh", "-euc", commands], cwd=FOLDER, env=self._environment | {"JOB": ""}, check=True)

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def at_work(self) -> set[str]:
        """What the release of Helm and the proxy mount, by the names of configuration maps."""
        names = set()
        for file in ("values.yaml", "proxy.yaml"):
            if (self.applied / file).exists():
                names |= set(re.findall(r"configMap: \{name: ([\w-]+)\}", (self.applied / file).read_text()))
        return names


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_version_starts_with_the_lab_yaml_of_its_complete_job(cluster: Cluster):
    code, said = cluster.ended(cluster.deploy())
    assert code == 0, said
    verbs = [call for call in cluster.calls if "apply" in call or "get job" in call or call.startswith("helm")]
    assert verbs.index(next(call for call in verbs if "get job" in call)) < verbs.index(
        next(call for call in verbs if call.startswith("helm"))
    )
    (job,) = cluster.applied.glob("migrate-v2-*.yaml")
    described = yaml.safe_load(job.read_text())
    kubernetes_validate.validate(described, KUBERNETES, strict=True)
    assert described["spec"]["activeDeadlineSeconds"] < 400 * 10
    (of_job,) = [
        one["configMap"]["name"] for one in described["spec"]["template"]["spec"]["volumes"] if "configMap" in one
    ]
    assert "name: a" in (cluster.applied / f"{of_job}.yaml").read_text()
    (caddyfile,) = cluster.at_work() - {of_job}
    # Both web servers answer under the names that the proxy serves.
    served = yaml.safe_load((cluster.applied / "values.yaml").read_text())["dagsterWebserver"]["env"]
    (names,) = [one["value"] for one in served if one["name"] == "DLC_PLATFORM_WEB_HOSTS"]
    assert {host_of(name) for name in names.split(",")} == {"dlc.lab.example.org", "dlc-view.lab.example.org"}
    assert cluster.at_work() == {of_job, caddyfile}
    assert (cluster.applied / f"{caddyfile}.yaml").exists()
    for document in yaml.safe_load_all((cluster.applied / "proxy.yaml").read_text()):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert not any("delete" in call for call in cluster.calls)


def test_a_cluster_from_before_gets_its_tokens_once(cluster: Cluster):
    assert cluster.ended(cluster.deploy())[0] == 0
    (made,) = [call for call in cluster.calls if "create secret" in call]
    drawn = (cluster.applied / "dlc-platform-web.secret").read_text()
    edit, view, rest = drawn[:64], drawn[64:128], drawn[128:]
    assert re.fullmatch("[0-9a-f]{128}", edit + view) and edit != view
    assert f"Bearer {edit}" in rest and f"Bearer {view}" in rest
    # They are on no command line, and only for a moment in files, for who deploys alone.
    assert edit not in " ".join(cluster.calls) and view not in " ".join(cluster.calls)
    assert {line[:10] for line in (cluster.applied / "modes").read_text().splitlines()} == {"-rw-------"}
    assert not Path(made.split("--from-file=")[1].strip()).parent.exists()
    assert cluster.calls.index(made) < next(i for i, call in enumerate(cluster.calls) if call.startswith("helm"))
    assert cluster.ended(cluster.deploy())[0] == 0
    assert [call for call in cluster.calls if "create secret" in call] == [made]


def test_both_web_servers_and_the_proxy_find_their_tokens():
    """The chart gives both web servers the same variables and files."""
    web = values()["dagsterWebserver"]
    mounts = {one["name"]: one["mountPath"] for one in web["volumeMounts"]}
    (volume,) = [one["secret"] for one in web["volumes"] if one["name"] == "tokens"]
    files = {f"{mounts['tokens']}/{item['path']}": item["key"] for item in volume["items"]}
    named = {one["name"]: files.get(one["value"]) for one in web["env"]}
    assert named["DLC_PLATFORM_WEB_TOKEN_FILE"] == "web_edit_token"
    assert named["DLC_PLATFORM_WEB_READ_ONLY_TOKEN_FILE"] == "web_view_token"
    (pod,) = [one for one in pods() if any(container["name"] == "caddy" for container in one["containers"])]
    (caddy,) = [one for one in pod["containers"] if one["name"] == "caddy"]
    (of_proxy,) = [one["secret"] for one in pod["volumes"] if one["name"] == "tokens"]
    (mounted,) = [one["mountPath"] for one in caddy["volumeMounts"] if one["name"] == "tokens"]
    (place,) = [one["value"] for one in caddy["env"] if one["name"] == "TOKENS"]
    (item,) = of_proxy["items"]
    assert (place, item["key"]) == (f"{mounted}/{item['path']}", "proxy_tokens")
    assert volume["secretName"] == of_proxy["secretName"] == "dlc-platform-web"


def test_what_the_chart_calls_is_the_web_server_behind_the_gate(tmp_path: Path):
    """It is called by its name in a shell, as the chart's template does, with the PATH of the image."""
    dockerfile = (DEPLOYMENTS / "Dockerfile").read_text()
    assert "COPY --chmod=0755 deployments/entrypoint deployments/dagster-webserver /usr/local/bin/" in dockerfile
    # Dagster's own command, which would come first there, is gone from the image.
    assert dockerfile.count("RUN uv pip install --no-deps . && rm /opt/venv/bin/dagster-webserver\n") == 2
    assert "!deployments/dagster-webserver" in (DEPLOYMENTS / "Dockerfile.dockerignore").read_text()
    shutil.copy(DEPLOYMENTS / "dagster-webserver", tmp_path)
    (tmp_path / "web_edit_token").write_text(64 * "e")
    (tmp_path / "web_view_token").write_text(64 * "v")
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    environment = {
        one["name"]: one["value"].replace("/run/secrets/dlc-platform-web", str(tmp_path))
        for one in values()["dagsterWebserver"]["env"]
    }
    environment |= plain_environment() | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DLC_PLATFORM_WEB_HOSTS": "dlc.lab.example.org",
        "DAGSTER_DISABLE_TELEMETRY": "true",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call = f"exec dagster-webserver -h 127.0.0.1 -p {port} -w {tmp_path}/workspace.yaml --read-only"
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(["/bin/bash", "-c", call], env=environment, cwd=tmp_path, stdout=log, stderr=log) as process,
    ):

        def status(path: str, **headers: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", path, headers=headers)
                return connection.getresponse().status

        def up() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                # As the kubelet asks, which names the pod by its address.
                return status("/server_info", Host="10.42.0.7:3000") == 200
            except ConnectionError:
                return False

        try:
            wait_for(up)
            assert status("/runs") == status("/runs", Authorization=f"Bearer {64 * 'e'}") == 401
            assert status("/runs", Authorization=f"Bearer {64 * 'v'}") == 200
        finally:
            process.terminate()


def test_going_back_brings_the_image_that_the_tag_named(cluster: Cluster):
    first, other = f"@sha256:{64 * '1'}", f"@sha256:{64 * 'e'}"
    assert cluster.ended(cluster.deploy(image=first))[0] == 0
    # Somebody has given the tag to another image: the job asks for the first one by its digest.
    assert cluster.ended(cluster.deploy(image=other))[0] == 0
    started = [call for call in cluster.calls if call.startswith("helm")]
    assert len(started) == 2
    for call in started:
        assert re.findall(r"image\.tag=(\S+)", call) == [f"v2{first}"] * 3
    jobs = [file.read_text() for file in cluster.applied.glob("migrate-*.yaml")]
    assert any(f"registry/dlc-platform:v2{first}" in job for job in jobs)


def test_a_cluster_that_gives_no_digest_is_named(cluster: Cluster):
    code, said = cluster.ended(cluster.deploy())
    assert code == 0 and "gives no digest of registry/dlc-platform:v2" in said
    (started,) = [call for call in cluster.calls if call.startswith("helm")]
    assert re.findall(r"image\.tag=(\S+)", started) == ["v2"] * 3


def test_a_missing_lab_yaml_stops_it_before_any_request(cluster: Cluster):
    code, said = cluster.ended(cluster.deploy(lab_file="/nowhere/lab.yaml"))
    assert code == 1
    assert "LAB_FILE is /nowhere/lab.yaml: there is no such file" in said
    assert cluster.calls == []


def test_the_lab_yaml_may_be_named_from_where_one_is(cluster: Cluster):
    code, said = cluster.ended(cluster.deploy(lab_file="lab.yaml"))
    assert code == 0, said
    assert any("name: a" in file.read_text() for file in cluster.applied.glob("dlc-platform-settings-*"))


@pytest.mark.parametrize("job", ["FailureTarget Failed", ""], ids=["failed", "never ends"])
def test_a_failed_job_changes_nothing_and_stops_the_deployment(cluster: Cluster, job: str):
    assert cluster.ended(cluster.deploy())[0] == 0
    before, calls = cluster.at_work(), len(cluster.calls)
    kept = {file.name: file.read_text() for file in cluster.applied.glob("dlc-platform-*")}
    cluster.lab_file.write_text("name: broken\n")
    code, said = cluster.ended(cluster.deploy(job))
    assert code == 1
    assert "v2 was not deployed; what was at work still is" in said
    after = cluster.calls[calls:]
    (deleted,) = [call for call in after if " delete job migrate-v2-" in call]
    (logs,) = [call for call in after if " logs job/migrate-v2-" in call]
    assert after.index(logs) < after.index(deleted)
    assert not any(call.startswith("helm") for call in after)
    assert cluster.at_work() == before
    for name, text in kept.items():
        assert (cluster.applied / name).read_text() == text


def test_a_deployment_that_is_cut_off_leaves_no_migration_behind(cluster: Cluster):
    process = cluster.deploy("", poll=30)
    wait_for(lambda: any("get job" in call for call in cluster.calls))
    os.killpg(process.pid, signal.SIGTERM)
    code, said = cluster.ended(process)
    assert code == 143, said
    assert any(" delete job migrate-v2-" in call for call in cluster.calls)
    assert not any(call.startswith("helm") for call in cluster.calls)


def test_a_new_lab_yaml_makes_new_pods_and_a_rollback_old_ones(cluster: Cluster):
    assert cluster.ended(cluster.deploy())[0] == 0
    before = cluster.at_work()
    kept = {file.name: file.read_text() for file in cluster.applied.glob("dlc-platform-*")}
    cluster.lab_file.write_text("name: b\n")
    code, _ = cluster.ended(cluster.deploy(helm=1))
    assert code == 1
    assert not any(" delete job" in call for call in cluster.calls)
    assert cluster.at_work() != before
    for name, text in kept.items():
        assert (cluster.applied / name).read_text() == text


def test_a_job_that_sees_the_backups_of_deploy_restores_one(cluster: Cluster):
    block = (DEPLOYMENTS / "README.md").read_text().partition("In Kubernetes the server is your own.")[2]
    commands = block.partition("\n\n    ")[2].partition("\n\n")[0]
    cluster.run(commands)
    assert [call.split()[2] for call in cluster.calls] == ["scale", "--filename", "wait", "delete"]
    (job,) = [one for name, one in MANIFESTS if name == "migrate.yaml-Job-migrate-RELEASE"]
    restored = yaml.safe_load((cluster.applied / "restore.yaml").read_text())
    kubernetes_validate.validate(restored, KUBERNETES, strict=True)
    assert restored["spec"]["template"]["spec"]["securityContext"] == job["spec"]["template"]["spec"]["securityContext"]
    (container,) = restored["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.org/dlc-platform:v1"
    (backing_up,) = [one for one in job["spec"]["template"]["spec"]["initContainers"] if one["name"] == "backup"]
    folder = Path(backing_up["args"][-1]).parent
    assert Path(container["args"][2]).parent == folder
    volumes = {one["name"]: one for one in job["spec"]["template"]["spec"]["volumes"]}
    for mount in container["volumeMounts"]:
        (volume,) = [one for one in restored["spec"]["template"]["spec"]["volumes"] if one["name"] == mount["name"]]
        assert volume == volumes[mount["name"]]
    (url,) = container["env"]
    assert url in backing_up["env"]


def test_readme_commands_need_no_root_and_git_leaves_out_secrets(
    make_reachable: Callable[[], AbstractContextManager[Path]], tmp_path: Path
):
    """Whoever calls kubectl reads the files that make-secrets made."""
    text = (DEPLOYMENTS / "README.md").read_text().partition("## A cluster")[2]
    block = text.partition("\n\n    ")[2].partition("\n\n")[0]
    with make_reachable() as folder:
        checkout = folder / "checkout"
        shutil.copytree(DEPLOYMENTS, checkout / "deployments")
        here = checkout / "deployments" / "kubernetes"
        (here / "lab.yaml").write_text("name: a\n")
        (here / "secrets").mkdir()
        for name in ("tls.crt", "tls.key"):
            (here / "secrets" / name).write_text("of an authority")
        (folder / "applied").mkdir()
        for name, double in (("kubectl", KUBECTL + READING), ("helm", HELM)):
            (folder / name).write_text(double)
            (folder / name).chmod(0o755)
        someone: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("nobody")
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, account.pw_uid, account.pw_gid)
            someone = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "CALLS": str(folder / "calls"),
            "APPLIED": str(folder / "applied"),
            "JOB": "Complete",
            "HELM": "0",
        }
        done = subprocess.run(
            ["sh", "-euc", block],
            cwd=checkout,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            **someone,
        )
        assert done.returncode == 0, done.stderr
        assert "v1 is in force" in done.stderr
        calls = (folder / "calls").read_text()
        for _, manifest in MANIFESTS:
            if manifest["kind"] == "Secret":
                name = f" {manifest['metadata']['name']} "
                (call,) = [line for line in calls.splitlines() if "create secret" in line and name in line]
                # By the name that is given, or by that of the file.
                for key in manifest["stringData"]:
                    assert re.search(rf"(=|/){re.escape(key)}(=| |$)", call), (key, call)
        assert "postgres.lab.example.org" in (here / "secrets" / "platform_url").read_text()
        subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
        shutil.copy(DEPLOYMENTS.parent / ".gitignore", tmp_path)
        for name in ("deployments/kubernetes/secrets/platform_url", "deployments/workstation/.env"):
            subprocess.run(["git", "-C", tmp_path, "check-ignore", "--quiet", name], check=True)
