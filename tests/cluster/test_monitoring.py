"""Dashboard and alerts use existing metrics and labels, and alerts fire for the right runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.util import metrics

from cvbatch.predict.ray_metrics import METRIC_SPECS
from tests.cluster.manifests import ROOT, assemble, pod_templates

MONITORING = ROOT / "cluster/monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
EXPORTED = {
    f"ray_{name}_total" if meter.kind is metrics.Counter else f"ray_{name}": {"run", meter.tag}
    for name, meter in METRIC_SPECS.items()
}
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"),
    reason="promtool is not installed (it is in Debian's package prometheus)",
)


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*panels, *(rule["expr"] for rule in RULES)]


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_used_metrics_are_the_exported_ones():
    used = [name for text in expressions() for name in re.findall(r"ray_\w+", text)]
    assert set(used) == set(EXPORTED)


def test_expressions_use_labels_of_their_metrics():
    for text in expressions():
        labels = set[str]().union(*(EXPORTED[name] for name in re.findall(r"ray_\w+", text)))
        used = re.findall(r"[{,](\w+)=", text)
        used += [
            name for names in re.findall(r"(?:by|on) \((.*?)\)", text) for name in names.split(",")
        ]
        assert used
        assert {name.strip() for name in used} <= labels, text


def test_counters_are_used_as_rates_and_gauges_directly():
    for text in expressions():
        for name in re.findall(r"ray_\w+", text):
            is_rate = re.search(rf"(?:rate|increase)\({name}", text) is not None
            assert is_rate == name.endswith("_total"), text


def test_panels_do_not_overlap_and_show_the_chosen_run():
    occupied = set()
    for panel in DASHBOARD["panels"]:
        position = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not cells & occupied, panel["title"]
        assert max(x for x, _ in cells) < 24
        occupied |= cells
        assert all("$run" in target["expr"] for target in panel["targets"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"source", "run"}


def test_every_alert_is_documented():
    page = (ROOT / "docs/operations.md").read_text()
    assert RULES
    assert [rule["alert"] for rule in RULES if rule["alert"] not in page] == []


def test_pods_have_the_label_and_port_of_the_scrape_config():
    (pods, _) = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    key, value = pods["kubernetes_sd_configs"][0]["selectors"][0]["label"].split("=")
    port = pods["relabel_configs"][0]["regex"]
    for document in assemble("base"):
        for pod in pod_templates(document):
            assert pod["metadata"]["labels"][key] == value
            assert port in [entry["name"] for entry in pod["spec"]["containers"][0]["ports"]]


@needs_promtool
def test_prometheus_accepts_the_rules_and_the_expressions_of_the_panels(tmp_path):
    assert promtool("check", "rules", MONITORING / "alerts.yaml") == ""
    panels = tmp_path / "panels.yaml"
    rules = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(expressions())]
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert promtool("check", "rules", panels) == ""


@needs_promtool
def test_prometheus_accepts_the_scrape_config(tmp_path):
    config: Any = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["scrape_configs"] = [
        entry for entry in config["scrape_configs"] if "kubernetes_sd_configs" not in entry
    ]  # Debian's build has no Kubernetes discovery
    config["rule_files"] = []
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    assert promtool("check", "config", "--syntax-only", path) == ""


@needs_promtool
def test_alerts_fire_for_the_right_runs(tmp_path):
    text = (Path(__file__).with_name("alerts_test.yaml")).read_text()
    path = tmp_path / "alerts_test.yaml"
    path.write_text(text.replace("ALERTS", str(MONITORING / "alerts.yaml")))
    assert promtool("test", "rules", path) == ""
