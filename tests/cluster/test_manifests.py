"""Manifests are valid for Kubernetes, KubeRay and Kueue, and consistent with one another."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from ray.dashboard.modules.job.cli import job_cli_group as job_cli
from ray.scripts import scripts

from cvbatch.cli import main
from cvbatch.config.loader import parse_job
from cvbatch.config.train import parse_training
from tests.cluster.manifests import (
    FOLDERS,
    KUBERAY,
    assemble,
    documents,
    key_of,
    pod_templates,
    render,
    schema_errors,
)

JOBS = ("ray.io/v1/RayJob", "ray.io/v1/RayCronJob")
GIB = 1 << 30


def only(kind: str, folder: str = "base") -> Any:
    (document,) = [document for document in assemble(folder) if document["kind"] == kind]
    return copy.deepcopy(document)


def clusters() -> dict[str, Any]:
    """Return the Ray cluster specs by the path of their file."""
    spec_of: dict[str, Callable[[Any], Any]] = {
        "ray.io/v1/RayCluster": lambda document: document["spec"],
        "ray.io/v1/RayJob": lambda document: document["spec"]["rayClusterSpec"],
        "ray.io/v1/RayCronJob": lambda document: document["spec"]["jobTemplate"]["rayClusterSpec"],
    }
    return {
        path: spec_of[key_of(document)](document)
        for path, group in documents().items()
        for document in group
        if key_of(document) in spec_of
    }


def groups(cluster: Any) -> dict[str, Any]:
    """Return the groups of a cluster by name, including the head."""
    workers = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", ())}
    return {"head": cluster["headGroupSpec"], **workers}


def test_every_kind_of_cluster_exists():
    assert set(clusters()) == {
        "base/predict.yaml",
        "train/train.yaml",
        "nightly/cluster.yaml",
        "raycron/raycron.yaml",
    }


def test_only_workers_that_build_no_network_have_the_image_without_tensorflow():
    for path, cluster in clusters().items():
        for name, group in groups(cluster).items():
            (container,) = group["template"]["spec"]["containers"]
            image = {"head": "cvbatch-cpu", "cpu": "cvbatch-worker", "gpu": "cvbatch-gpu"}[name]
            assert container["image"] == image, (path, name)


@pytest.mark.parametrize("path", documents())
def test_a_manifest_matches_its_schema(path):
    for document in documents()[path]:
        assert schema_errors(document) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_assembled_folder_matches_the_schemas(folder):
    assembled = assemble(folder)
    assert assembled
    assert [error for document in assembled for error in schema_errors(document)] == []


def test_deletion_rules_replace_the_lifetime():
    (job,) = [item for item in assemble("base", "rules") if item["kind"] == "RayJob"]
    assert schema_errors(job) == []
    assert "ttlSecondsAfterFinished" not in job["spec"]


@pytest.mark.skipif(
    not (shutil.which("kustomize") or shutil.which("kubectl")), reason="kustomize is not installed"
)
@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_gives_the_same_result(folder):
    def kind_and_name(document: Any) -> tuple[str, str]:
        return document["kind"], document["metadata"]["name"]

    assert sorted(render(folder), key=kind_and_name) == sorted(assemble(folder), key=kind_and_name)


def _head(job: Any) -> Any:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("break_job", "message"),
    [
        (lambda job: job["spec"].update(backoffLimits=3), "backoffLimits"),
        (lambda job: job["spec"].update(backoffLimit="3"), "backoffLimit"),
        (lambda job: job["spec"]["rayClusterSpec"].pop("headGroupSpec"), "headGroupSpec"),
        (lambda job: _head(job).update(serviceAccount_name="cvbatch"), "serviceAccount_name"),
        (lambda job: _head(job)["containers"][0].update(image=3), "image"),
        (lambda job: _head(job)["containers"][0].pop("name"), "name"),
        (lambda job: _head(job)["volumes"][0]["emptyDir"].update(size="2Gi"), "size"),
        (lambda job: job.update(apiVersion="ray.io/v1alpha1"), "no schema"),
    ],
)
def test_an_invalid_job_is_rejected(break_job, message):
    job = only("RayJob")
    break_job(job)
    assert any(message in error for error in schema_errors(job))


def test_an_invalid_queue_or_policy_is_rejected():
    queue, policy = only("ClusterQueue", "kueue"), only("NetworkPolicy")
    queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0].pop("nominalQuota")
    policy["spec"]["egress"][0]["port"] = 443
    assert schema_errors(queue)
    assert schema_errors(policy)


def test_three_files_are_to_be_edited():
    marked = {
        str(path.relative_to(KUBERAY)): path.read_text().count("EDIT HERE")
        for path in KUBERAY.rglob("*.yaml")
        if "EDIT HERE" in path.read_text()
    }
    assert marked == {"site/account.yaml": 1, "site/jobs.yaml": 1, "site/kustomization.yaml": 1}


@pytest.mark.parametrize("path", clusters())
def test_nothing_is_scheduled_on_a_head(path):
    head = groups(clusters()[path])["head"]
    assert head["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("path", clusters())
def test_groups_use_options_of_ray_start(path):
    known = {option.lstrip("-") for param in scripts.start.params for option in param.opts}
    for group in groups(clusters()[path]).values():
        assert set(group["rayStartParams"]) <= known


@pytest.mark.parametrize("path", clusters())
def test_the_object_store_fits_into_shm_and_shm_into_the_container(path):
    for group in groups(clusters()[path]).values():
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        limits = container["resources"]["limits"]
        (shm,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm"]
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store < gibibytes(shm["sizeLimit"]) * GIB
        assert gibibytes(shm["sizeLimit"]) <= gibibytes(limits["memory"]) / 4
        assert container["resources"]["requests"]["memory"] == limits["memory"]


def gibibytes(text: str) -> int:
    number = re.fullmatch(r"(\d+)Gi", text)
    assert number, text
    return int(number[1])


@pytest.mark.parametrize("path", clusters())
def test_groups_have_a_fixed_size(path):
    for group in clusters()[path]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] > 0


def test_a_group_is_the_same_in_all_files():
    by_name: dict[str, list[Any]] = {}
    for cluster in clusters().values():
        for name, group in groups(cluster).items():
            by_name.setdefault(name, []).append((group["rayStartParams"], group["template"]))
    assert set(by_name) == {"head", "cpu", "gpu"}
    for copies in by_name.values():
        assert len(copies) > 1
        assert all(group == copies[0] for group in copies)


def test_only_the_gpu_group_requests_gpus():
    by_name = groups(clusters()["base/predict.yaml"])
    (container,) = by_name["gpu"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in yaml.dump([by_name["head"], by_name["cpu"]])


def test_jobs_have_a_deadline_and_retries_and_shut_down():
    jobs = [item for group in documents().values() for item in group if key_of(item) in JOBS]
    specs = [job["spec"].get("jobTemplate", job["spec"]) for job in jobs]
    assert len(specs) == 3
    for spec in specs:
        assert spec["activeDeadlineSeconds"] > 0
        assert spec["backoffLimit"] > 0
        assert spec["shutdownAfterJobFinishes"] is True  # otherwise the next one is refused
        assert spec["ttlSecondsAfterFinished"] > 0


def test_a_nightly_job_ends_before_the_next_one():
    (submit,) = documents()["nightly/submit.yaml"]
    (raycron,) = documents()["raycron/raycron.yaml"]
    assert submit["spec"]["concurrencyPolicy"] == "Forbid"
    assert submit["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600
    assert raycron["spec"]["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600


def test_job_files_are_valid_and_at_the_paths_of_the_commands():
    (jobs,) = documents()["site/jobs.yaml"]
    assert set(jobs["data"]) == {"predict.yaml", "train.yaml"}
    parse_job(yaml.safe_load(jobs["data"]["predict.yaml"]))
    parse_training(yaml.safe_load(jobs["data"]["train.yaml"]))
    paths = re.findall(
        r"--config,? (\S+?)[\]\n]",
        "".join((KUBERAY / path).read_text() for path in documents()),
    )
    assert len(paths) == 4
    for path in clusters():
        head = groups(clusters()[path])["head"]["template"]["spec"]
        mounts = {mount["name"]: mount for mount in head["containers"][0]["volumeMounts"]}
        assert {"name": "jobs", "configMap": {"name": jobs["metadata"]["name"]}} in head["volumes"]
        for job_path in paths:
            folder, file = job_path.rsplit("/", 1)
            assert folder == mounts["jobs"]["mountPath"]
            assert file in jobs["data"]


def test_commands_are_valid_for_cvbatch_and_ray():
    jobs = [
        item["spec"] for group in documents().values() for item in group if key_of(item) in JOBS
    ]
    commands = [spec.get("jobTemplate", spec)["entrypoint"].split() for spec in jobs]
    (submit,) = documents()["nightly/submit.yaml"]
    (pod,) = pod_templates(submit)
    submitted = pod["spec"]["containers"][0]["command"]
    assert submitted[:3] == ["ray", "job", "submit"]
    submission = job_cli.commands["submit"].make_context("submit", submitted[3:])
    commands.append(list(submission.params["entrypoint"]))
    assert len(commands) == 4
    for program, *arguments in commands:
        assert program == "cvbatch"
        assert main.build_parser().parse_args(arguments).command


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_run_without_privileges(folder):
    (account,) = [item for item in assemble(folder) if item["kind"] == "ServiceAccount"]
    assert account["automountServiceAccountToken"] is False
    pods = [pod["spec"] for document in assemble(folder) for pod in pod_templates(document)]
    assert pods
    for pod in pods:
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["image"].startswith("registry.example.com/")


@pytest.mark.parametrize("folder", FOLDERS)
def test_there_are_no_secrets(folder):
    text = yaml.dump_all(assemble(folder))
    assert not re.search(r"SECRET|PASSWORD|AKIA|kind: Secret", text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_network_policy_selects_the_pods(folder):
    assembled = assemble(folder)
    (policy,) = [document for document in assembled if document["kind"] == "NetworkPolicy"]
    selector = policy["spec"]["podSelector"]["matchLabels"].items()
    for document in assembled:
        for pod in pod_templates(document):
            assert selector <= pod["metadata"]["labels"].items()


def test_the_quota_of_the_queue_is_enough_for_the_job():
    queue = only("ClusterQueue", "kueue")
    job = only("RayJob", "kueue")
    name = job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert only("LocalQueue", "kueue")["metadata"]["name"] == name
    assert only("LocalQueue", "kueue")["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == only("ResourceFlavor", "kueue")["metadata"]["name"]
    quota = {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}
    assert list(quota) == group["coveredResources"]
    requested = {"cpu": 0, "memory": 0, "nvidia.com/gpu": 0}
    for spec in groups(job["spec"]["rayClusterSpec"]).values():
        (container,) = spec["template"]["spec"]["containers"]
        for resource, amount in container["resources"]["limits"].items():
            number = gibibytes(amount) if resource == "memory" else int(amount)
            requested[resource] += number * spec.get("replicas", 1)
    assert requested["cpu"] <= quota["cpu"]
    assert requested["memory"] <= gibibytes(quota["memory"])
    assert requested["nvidia.com/gpu"] <= quota["nvidia.com/gpu"]
