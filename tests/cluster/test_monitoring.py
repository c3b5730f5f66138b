"""Dashboard and alerts ask for metrics that the job has, and speak of the runs they should."""

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
    not shutil.which("promtool"), reason="no promtool here (Debian's package prometheus has it)"
)


def expressions() -> list[str]:
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in RULES)]


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_every_metric_that_is_asked_for_is_one_the_job_has():
    asked = [name for text in expressions() for name in re.findall(r"ray_\w+", text)]
    assert set(asked) <= set(EXPORTED)
    assert set(EXPORTED) <= set(asked)  # and there is none that nobody looks at


def test_metrics_are_told_apart_by_labels_they_have():
    for text in expressions():
        had = set[str]().union(*(EXPORTED[name] for name in re.findall(r"ray_\w+", text)))
        used = re.findall(r"[{,](\w+)=", text)
        used += [
            name for names in re.findall(r"(?:by|on) \((.*?)\)", text) for name in names.split(",")
        ]
        assert used
        assert {name.strip() for name in used} <= had, text


def test_counters_are_looked_at_by_their_rate_and_gauges_as_they_are():
    for text in expressions():
        for name in re.findall(r"ray_\w+", text):
            is_rate = re.search(rf"(?:rate|increase)\({name}", text) is not None
            assert is_rate == name.endswith("_total"), text


def test_panels_do_not_overlap_and_show_the_chosen_run():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert all("$run" in target["expr"] for target in panel["targets"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {one["name"] for one in DASHBOARD["templating"]["list"]} == {"source", "run"}


def test_every_alert_is_in_the_operations_page():
    page = (ROOT / "docs/operations.md").read_text()
    assert RULES
    assert [rule["alert"] for rule in RULES if rule["alert"] not in page] == []


def test_pods_are_found_by_what_they_are_called():
    (pods, _) = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    key, value = pods["kubernetes_sd_configs"][0]["selectors"][0]["label"].split("=")
    port = pods["relabel_configs"][0]["regex"]
    for document in assemble("base"):
        for pod in pod_templates(document):
            assert pod["metadata"]["labels"][key] == value
            assert port in [one["name"] for one in pod["spec"]["containers"][0]["ports"]]


@needs_promtool
def test_prometheus_reads_the_rules_and_what_the_panels_ask(tmp_path):
    assert promtool("check", "rules", MONITORING / "alerts.yaml") == ""
    panels = tmp_path / "panels.yaml"
    rules = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(expressions())]
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert promtool("check", "rules", panels) == ""


@needs_promtool
def test_prometheus_reads_what_is_to_be_scraped(tmp_path):
    config: Any = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["scrape_configs"] = [
        one for one in config["scrape_configs"] if "kubernetes_sd_configs" not in one
    ]  # Debian's build does not know Kubernetes
    config["rule_files"] = []
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    assert promtool("check", "config", "--syntax-only", path) == ""


@needs_promtool
def test_alerts_speak_of_the_runs_they_should(tmp_path):
    text = (Path(__file__).with_name("alerts_test.yaml")).read_text()
    path = tmp_path / "alerts_test.yaml"
    path.write_text(text.replace("ALERTS", str(MONITORING / "alerts.yaml")))
    assert promtool("test", "rules", path) == ""
