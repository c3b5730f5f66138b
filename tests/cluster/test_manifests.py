"""What is applied to a cluster is what Kubernetes, KubeRay and Kueue know, and fits together."""

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
    faults,
    key_of,
    pod_templates,
    render,
)

JOBS = ("ray.io/v1/RayJob", "ray.io/v1/RayCronJob")
GIB = 1 << 30


def one(kind: str, folder: str = "base") -> Any:
    (found,) = [document for document in assemble(folder) if document["kind"] == kind]
    return copy.deepcopy(found)


def clusters() -> dict[str, Any]:
    """Return every description of a Ray cluster by the file it stands in."""
    inside: dict[str, Callable[[Any], Any]] = {
        "ray.io/v1/RayCluster": lambda document: document["spec"],
        "ray.io/v1/RayJob": lambda document: document["spec"]["rayClusterSpec"],
        "ray.io/v1/RayCronJob": lambda document: document["spec"]["jobTemplate"]["rayClusterSpec"],
    }
    return {
        path: inside[key_of(document)](document)
        for path, held in documents().items()
        for document in held
        if key_of(document) in inside
    }


def groups(cluster: Any) -> dict[str, Any]:
    """Return the groups of a cluster by name, the head among them."""
    workers = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", ())}
    return {"head": cluster["headGroupSpec"], **workers}


def test_every_kind_of_cluster_is_there():
    assert set(clusters()) == {
        "base/predict.yaml",
        "train/train.yaml",
        "nightly/cluster.yaml",
        "raycron/raycron.yaml",
    }


@pytest.mark.parametrize("path", documents())
def test_a_manifest_is_as_its_schema_says(path):
    for document in documents()[path]:
        assert faults(document) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_put_together_is_as_the_schemas_say(folder):
    held = assemble(folder)
    assert held
    assert [fault for document in held for fault in faults(document)] == []


def test_deletion_rules_take_the_place_of_the_lifetime():
    (job,) = [one for one in assemble("base", "rules") if one["kind"] == "RayJob"]
    assert faults(job) == []
    assert "ttlSecondsAfterFinished" not in job["spec"]


@pytest.mark.skipif(
    not (shutil.which("kustomize") or shutil.which("kubectl")), reason="no kustomize here"
)
@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_makes_the_same_of_a_folder(folder):
    def named(document: Any) -> tuple[str, str]:
        return document["kind"], document["metadata"]["name"]

    assert sorted(render(folder), key=named) == sorted(assemble(folder), key=named)


def _head(job: Any) -> Any:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("spoil", "said"),
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
def test_a_fault_in_a_manifest_is_seen(spoil, said):
    job = one("RayJob")
    spoil(job)
    assert any(said in fault for fault in faults(job))


def test_a_fault_in_a_queue_or_a_policy_is_seen():
    queue, policy = one("ClusterQueue", "kueue"), one("NetworkPolicy")
    queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0].pop("nominalQuota")
    policy["spec"]["egress"][0]["port"] = 443
    assert faults(queue)
    assert faults(policy)


def test_three_places_are_to_be_edited():
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
def test_groups_say_what_ray_start_understands(path):
    known = {option.lstrip("-") for given in scripts.start.params for option in given.opts}
    for group in groups(clusters()[path]).values():
        assert set(group["rayStartParams"]) <= known


@pytest.mark.parametrize("path", clusters())
def test_the_object_store_fits_its_memory_and_that_the_container(path):
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


def test_a_group_is_the_same_wherever_it_stands():
    seen: dict[str, list[Any]] = {}
    for cluster in clusters().values():
        for name, group in groups(cluster).items():
            seen.setdefault(name, []).append((group["rayStartParams"], group["template"]))
    assert set(seen) == {"head", "cpu", "gpu"}
    for same in seen.values():
        assert len(same) > 1
        assert all(group == same[0] for group in same)


def test_gpus_are_asked_for_by_their_group_and_no_other():
    held = groups(clusters()["base/predict.yaml"])
    (container,) = held["gpu"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in yaml.dump([held["head"], held["cpu"]])


def test_jobs_have_a_deadline_and_retries_and_leave_nothing_running():
    jobs = [one for held in documents().values() for one in held if key_of(one) in JOBS]
    specs = [job["spec"].get("jobTemplate", job["spec"]) for job in jobs]
    assert len(specs) == 3
    for spec in specs:
        assert spec["activeDeadlineSeconds"] > 0
        assert spec["backoffLimit"] > 0
        assert spec["shutdownAfterJobFinishes"] is True  # without it the next is refused
        assert spec["ttlSecondsAfterFinished"] > 0


def test_a_night_is_over_before_the_next():
    (submit,) = documents()["nightly/submit.yaml"]
    (raycron,) = documents()["raycron/raycron.yaml"]
    assert submit["spec"]["concurrencyPolicy"] == "Forbid"
    assert submit["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600
    assert raycron["spec"]["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600


def test_job_files_are_where_the_commands_look_and_are_accepted():
    (jobs,) = documents()["site/jobs.yaml"]
    assert set(jobs["data"]) == {"predict.yaml", "train.yaml"}
    parse_job(yaml.safe_load(jobs["data"]["predict.yaml"]))
    parse_training(yaml.safe_load(jobs["data"]["train.yaml"]))
    told = re.findall(
        r"--config,? (\S+?)[\]\n]",
        "".join((KUBERAY / path).read_text() for path in documents()),
    )
    assert len(told) == 4
    for path in clusters():
        head = groups(clusters()[path])["head"]["template"]["spec"]
        mounts = {mount["name"]: mount for mount in head["containers"][0]["volumeMounts"]}
        assert {"name": "jobs", "configMap": {"name": jobs["metadata"]["name"]}} in head["volumes"]
        for name in told:
            folder, file = name.rsplit("/", 1)
            assert folder == mounts["jobs"]["mountPath"]
            assert file in jobs["data"]


def test_commands_are_ones_that_cvbatch_and_ray_know():
    jobs = [one["spec"] for held in documents().values() for one in held if key_of(one) in JOBS]
    commands = [spec.get("jobTemplate", spec)["entrypoint"].split() for spec in jobs]
    (submit,) = documents()["nightly/submit.yaml"]
    (pod,) = pod_templates(submit)
    submitted = pod["spec"]["containers"][0]["command"]
    assert submitted[:3] == ["ray", "job", "submit"]
    submission = job_cli.commands["submit"].make_context("submit", submitted[3:])
    commands.append(list(submission.params["entrypoint"]))
    assert len(commands) == 4
    for program, *words in commands:
        assert program == "cvbatch"
        assert main._parser().parse_args(words).command


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_are_nobody_special(folder):
    (account,) = [one for one in assemble(folder) if one["kind"] == "ServiceAccount"]
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
def test_there_are_no_keys(folder):
    text = yaml.dump_all(assemble(folder))
    assert not re.search(r"SECRET|PASSWORD|AKIA|kind: Secret", text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_network_policy_is_of_these_pods(folder):
    held = assemble(folder)
    (policy,) = [document for document in held if document["kind"] == "NetworkPolicy"]
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    for document in held:
        for pod in pod_templates(document):
            assert chosen <= pod["metadata"]["labels"].items()


def test_the_queue_holds_the_whole_job_or_it_would_wait_for_ever():
    queue = one("ClusterQueue", "kueue")
    job = one("RayJob", "kueue")
    name = job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert one("LocalQueue", "kueue")["metadata"]["name"] == name
    assert one("LocalQueue", "kueue")["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == one("ResourceFlavor", "kueue")["metadata"]["name"]
    quota = {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}
    assert list(quota) == group["coveredResources"]
    asked = {"cpu": 0, "memory": 0, "nvidia.com/gpu": 0}
    for spec in groups(job["spec"]["rayClusterSpec"]).values():
        (container,) = spec["template"]["spec"]["containers"]
        for resource, amount in container["resources"]["limits"].items():
            number = gibibytes(amount) if resource == "memory" else int(amount)
            asked[resource] += number * spec.get("replicas", 1)
    assert asked["cpu"] <= quota["cpu"]
    assert asked["memory"] <= gibibytes(quota["memory"])
    assert asked["nvidia.com/gpu"] <= quota["nvidia.com/gpu"]
