"""Check every node of the cluster before the first image: packages, source and sink.

Every node has its own packages, disks and credentials. The checks run as Ray tasks while the models
are built.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cvbatch.core.errors import (
    AccessDeniedError,
    ConfigError,
    NotFoundError,
    SinkError,
    SourceError,
    StoreError,
)
from cvbatch.core.extras import TENSORFLOW, packages_of
from cvbatch.core.model_formats import format_of
from cvbatch.core.types import Log
from cvbatch.core.version import __version__
from cvbatch.storage import store
from cvbatch.storage.store import Storage

_TIMEOUT_S = 60.0  # maximum wait for the checks, after the models are built
_REMEDY = "give all nodes of the cluster the driver's image, or one environment by --runtime-env"
CheckResult = dict[str, Any]  # plain values, because a node may lack cvbatch's classes


@dataclass(frozen=True)
class NodeCheck:
    """What a node checks.

    Args:
        storage: reads the source, reads and writes the sink.
        token: content of the probe file that the driver writes into the sink.
        source_uri: a file that exists for the driver; None for jobs without a source.
    """

    storage: Storage
    sink_uri: str
    token: str
    source_uri: str | None

    @property
    def probe_uri(self) -> str:
        """Return the URI of the probe file that the driver writes."""
        return store.join(self.sink_uri, "_cvbatch", f"probe-{self.token}")

    def node_probe_uri(self, node_id: str) -> str:
        """Return the URI of the probe file that a node writes."""
        return f"{self.probe_uri}-{node_id}"


@dataclass
class WorkerPackages:
    """The packages of extras that the workers of a job load, on the nodes where they can run.

    Args:
        packages: their versions must be those of the driver. Until the end of the check they may be
            replaced: a program's engine is known once it is compiled.
        needs_gpu: whether a worker reserves a GPU; nodes without one decode and write only.
    """

    packages: Sequence[str] = ()
    needs_gpu: bool = False

    @classmethod
    def of_network(cls, model: str) -> WorkerPackages:
        """Return those of workers that load a Keras network with its layers.

        Args:
            model: a network's name or the URI of its file or folder.
        """
        extras = [TENSORFLOW, "hub"] if format_of(model).is_folder else [TENSORFLOW]
        return cls(packages_of(extras))


class _Node(NamedTuple):
    address: str
    has_gpu: bool


def run_check(check: NodeCheck, node_id: str) -> tuple[str, str]:
    """Check source and sink; runs on the node.

    Returns:
        "source" or "sink" and what is wrong with it, or ("", "") if nothing is.
    """
    storage = check.storage
    try:
        if check.source_uri is not None and not storage.exists(check.source_uri):
            return "source", f"{check.source_uri} exists for the driver, but not on this node"
    except StoreError as error:
        return "source", str(error)
    try:
        if storage.read_bytes(check.probe_uri).decode() == check.token:
            storage.put_bytes(check.node_probe_uri(node_id), check.token.encode())
            return "", ""
        return "sink", "it contains another file than the driver wrote"
    except NotFoundError:
        return "sink", "a file that the driver wrote is not visible on this node"
    except StoreError as error:
        return "sink", str(error)


def _check_function(check: NodeCheck, node_id: str) -> Callable[[], CheckResult]:
    """Return the function that runs on a node; it can be unpickled without cvbatch."""
    from ray import cloudpickle

    pickled_check = cloudpickle.dumps(check)

    def run() -> CheckResult:
        import pickle
        import re
        import sys
        from importlib import metadata

        versions = {"Python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
        for package in metadata.distributions():  # the first of a name is imported
            name = re.sub(r"[-_.]+", "-", str(package.name)).lower()
            versions.setdefault(name, package.version)
        try:
            from cvbatch.core.version import __version__
            from cvbatch.distributed.preflight import run_check
        except ImportError as error:
            return {"versions": versions, "import_error": str(error)}
        versions["cvbatch"] = __version__
        fault = run_check(pickle.loads(pickled_check), node_id)  # noqa: S301 - the driver's own
        return {"versions": versions, "fault": fault}

    return run


@contextmanager
def check_nodes(
    storage: Storage,
    sink_uri: str,
    source_uri: str | None,
    report: Log,
    worker: WorkerPackages,
) -> Iterator[None]:
    """Start a check on every node that can run work; collect the results at the end of the block.

    Nodes that die or do not respond in time are ignored: the job can run without them. After an
    error the sink is as before.

    Args:
        source_uri: a file of the source; None for jobs without a source.
        report: receives a line about nodes that do not respond.
        worker: what the workers load besides the dependencies of cvbatch.

    Raises:
        RefusedError: a node, or this process, cannot run the job.
    """
    check = NodeCheck(storage, sink_uri, secrets.token_hex(8), source_uri)
    new_folders = _missing_folders(check.probe_uri)
    nodes = {
        node["NodeID"]: _Node(node["NodeManagerAddress"], node["Resources"].get("GPU", 0) > 0)
        for node in ray.nodes()
        if node["Alive"] and {"CPU", "GPU"} & node["Resources"].keys()
    }
    try:
        _write_probe(check)
        pending = _start_checks(check, nodes)
        yield
        _collect_results(pending, worker, sink_uri, report)
    finally:
        for uri in (check.probe_uri, *map(check.node_probe_uri, nodes)):
            storage.delete(uri)
        for folder in new_folders:
            with suppress(OSError):
                folder.rmdir()


def _write_probe(check: NodeCheck) -> None:
    try:
        check.storage.put_bytes(check.probe_uri, check.token.encode())
    except (AccessDeniedError, NotFoundError) as error:
        raise SinkError(f"the sink cannot be used: {error}") from None


def _start_checks(check: NodeCheck, nodes: dict[str, _Node]) -> dict[Any, _Node]:
    """Return ObjectRef of the result → node."""
    pending = {}
    for node_id, node in nodes.items():
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        task = ray.remote(_check_function(check, node_id))
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": strategy}
        pending[task.options(**options).remote()] = node
    return pending


def _collect_results(
    pending: dict[Any, _Node], worker: WorkerPackages, sink_uri: str, report: Log
) -> None:
    base, packages = packages_of(), list(worker.packages)
    deadline = time.monotonic() + _TIMEOUT_S
    while pending:
        refs, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not refs:
            missing = ", ".join(node.address for node in pending.values())
            report(f"no response within {_TIMEOUT_S:g} s from {missing}: continuing without them")
            return
        for ref in refs:
            address, has_gpu = pending.pop(ref)
            node, runs_workers = f"node {address}", has_gpu or not worker.needs_gpu
            try:
                result: CheckResult = ray.get(ref)
            except ray.exceptions.RuntimeEnvSetupError as error:
                line = str(error).strip().splitlines()[0][:300]
                raise ConfigError(f"{node} cannot create the runtime environment: {line}") from None
            except ray.exceptions.RayTaskError as error:
                raise ConfigError(f"{node} cannot be checked: {error.cause}") from None
            except ray.exceptions.RayError:  # the node has died
                continue
            expected = _versions([*base, *packages] if runs_workers else base)
            _validate(result, node, expected, sink_uri)


def _validate(result: CheckResult, node: str, expected: dict[str, str], sink_uri: str) -> None:
    """Raise RefusedError if a node lacks packages or cannot use the source or the sink."""
    if "import_error" in result:
        raise ConfigError(
            f"{node} cannot import cvbatch {__version__} ({result['import_error']}): {_REMEDY}"
        )
    versions = result["versions"]
    differences = [
        f"{name} {versions[name]} instead of {version}" if name in versions else f"no {name}"
        for name, version in expected.items()
        if versions.get(name) != version
    ]
    if differences:
        raise ConfigError(f"{node} has {', '.join(differences[:5])}: {_REMEDY}")
    subject, problem = result["fault"]
    if subject == "source":
        raise SourceError(
            f"{node} cannot read the source: {problem}; use a storage URI or a folder that all "
            "nodes share, and give them its credentials"
        )
    if subject == "sink":
        raise SinkError(
            f"{node} cannot write the sink {sink_uri}: {problem}; use a storage URI or a folder "
            "that all nodes share, and give them its credentials"
        )


def _missing_folders(uri: str) -> list[Path]:
    """Return the local parent folders of a URI that do not exist, the innermost first."""
    location = store.Location.of(uri)
    parents = Path(location.path).parents if location.scheme == "file" else ()
    return [folder for folder in parents if not folder.exists()]


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions in this process: of Python, of cvbatch, of packages that it has."""
    versions = {"Python": f"{sys.version_info[0]}.{sys.version_info[1]}", "cvbatch": __version__}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
