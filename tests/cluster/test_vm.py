"""Launcher files are valid for `ray up`, EC2 and Compute Engine."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from jsonschema import Draft202012Validator, ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.manifests import VM, schemas

NAMES = ("aws.yaml", "gcp.yaml")
SCHEMA = Draft202012Validator(
    json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
)


def launcher(name: str) -> Any:
    return yaml.safe_load((VM / name).read_text())


def ec2_errors(node_config: dict[str, Any]) -> str:
    ec2 = botocore.session.Session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape
    request = node_config | {"MinCount": 1, "MaxCount": 1}  # the launcher adds these
    return str(ParamValidator().validate(request, shape).generate_report())


def compute_errors(node_config: dict[str, Any]) -> list[str]:
    instance = Draft202012Validator(schemas()["compute/v1/Instance"])
    return [error.message for error in instance.iter_errors(node_config)]


def test_every_cloud_has_a_file():
    assert sorted(path.name for path in VM.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_ray_accepts_the_file(name):
    assert [error.message for error in SCHEMA.iter_errors(launcher(name))] == []
    validate_config(prepare_config(launcher(name)))


@pytest.mark.parametrize("name", NAMES)
def test_ray_rejects_a_misspelt_key(name):
    invalid = launcher(name)
    invalid["available_node_types"]["cpu"]["maximum_workers"] = 3
    assert list(SCHEMA.iter_errors(invalid))
    invalid = launcher(name)
    invalid["idle_timeout_min"] = 3
    with pytest.raises(ValidationError):
        validate_config(prepare_config(invalid))


def test_ec2_accepts_the_machines():
    for node in launcher("aws.yaml")["available_node_types"].values():
        assert ec2_errors(node["node_config"]) == ""
        assert "InstanceTyp" in ec2_errors({"InstanceTyp": "m7i.large"})


def test_compute_engine_accepts_the_machines():
    for node in launcher("gcp.yaml")["available_node_types"].values():
        assert compute_errors(node["node_config"]) == []
        invalid = copy.deepcopy(node["node_config"])
        invalid["disks"][0]["autodelete"] = True
        assert compute_errors(invalid)


@pytest.mark.parametrize("name", NAMES)
def test_groups_scale_and_nothing_is_scheduled_on_the_head(name):
    nodes = launcher(name)["available_node_types"]
    head = nodes.pop(launcher(name)["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert set(nodes) == {"cpu", "gpu"}
    assert nodes["gpu"]["resources"]["GPU"] == 1
    for node in nodes.values():
        assert node["min_workers"] < node["max_workers"]
    assert sum(node["max_workers"] for node in nodes.values()) <= launcher(name)["max_workers"]


def test_workers_are_spot_machines_and_the_head_is_not():
    aws = launcher("aws.yaml")["available_node_types"]
    gcp = launcher("gcp.yaml")["available_node_types"]
    for group in ("cpu", "gpu"):
        assert aws[group]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert gcp[group]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "InstanceMarketOptions" not in aws["head"]["node_config"]
    assert "scheduling" not in gcp["head"]["node_config"]


@pytest.mark.parametrize("name", NAMES)
def test_workers_have_their_images_and_nothing_is_installed(name):
    config = launcher(name)
    image = config["docker"]["image"]
    assert image.endswith("-cpu")
    for group, kind in {"cpu": "worker", "gpu": "gpu"}.items():
        node_type = config["available_node_types"][group]
        assert node_type["docker"]["worker_image"] == image.removesuffix("-cpu") + f"-{kind}"
    assert config["setup_commands"] == config["worker_setup_commands"] == []
