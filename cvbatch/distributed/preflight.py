"""Asks every node of a cluster, before the first image, whether it could do the job.

A node has its own packages, its own disk and its own credentials: what is in order where the driver
runs may be missing there. The nodes are asked while the models build, and answer in the meantime.
"""

from __future__ import annotations

import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

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
from cvbatch.core.version import __version__
from cvbatch.storage import store
from cvbatch.storage.store import Storage

_LIMIT_S = 60.0  # that nodes are waited for, when all else is ready
_REMEDY = "give all nodes of the cluster the same image, or one environment by --runtime-env"
Answer = dict[str, Any]  # of a node, in plain values: it may lack all of ours


@dataclass(frozen=True)
class NodeCheck:
    """What a node is to try."""

    storage: Storage
    sink_uri: str
    token: str  # that the driver has written into the sink
    source_uri: str | None  # a file that the driver has seen; None: there is no source

    @property
    def mark(self) -> str:
        """The URI of what the driver writes."""
        return store.join(self.sink_uri, "_cvbatch", f"probe-{self.token}")

    def mark_of(self, node: str) -> str:
        """Return the URI of what a node writes."""
        return f"{self.mark}-{node}"


def run_check(errand: NodeCheck, node: str) -> tuple[str, str]:
    """Return what of "source" or "sink" is not as it must be on this node, and how; "", "" for all.

    Called on the node.
    """
    storage = errand.storage
    try:
        if errand.source_uri is not None and not storage.exists(errand.source_uri):
            return "source", f"it does not find {errand.source_uri}, which this process sees"
    except StoreError as error:
        return "source", str(error)
    try:
        if storage.read_bytes(errand.mark).decode() == errand.token:
            storage.put_bytes(errand.mark_of(node), errand.token.encode())
            return "", ""
        return "sink", "it reads there what this process did not write"
    except NotFoundError:
        return "sink", "it does not see there what this process writes"
    except StoreError as error:
        return "sink", str(error)


def _question(errand: NodeCheck, names: list[str], node: str) -> Callable[[], Answer]:
    """Return what a node is asked, as a function that needs nothing of ours to be carried there."""
    from ray import cloudpickle

    sealed = cloudpickle.dumps(errand)

    def look() -> Answer:
        import pickle
        import sys
        from importlib import metadata

        said = {"Python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
        for name in names:
            try:
                said[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                said[name] = "none"
        try:
            import cvbatch
            from cvbatch.distributed.preflight import run_check
        except ImportError as error:
            return {"versions": said, "missing": str(error)}
        said["cvbatch"] = cvbatch.__version__
        fault = run_check(pickle.loads(sealed), node)  # noqa: S301 - the driver's own
        return {"versions": said, "fault": fault}

    return look


@contextmanager
def check_nodes(
    storage: Storage, sink_uri: str, source_uri: str | None, say: Callable[[str], None]
) -> Iterator[None]:
    """Ask every node that has work to give; at the end of the block hear what they say.

    A node that has died since, or does not answer, is passed over: the job outlives it. Where an
    error leaves the block, or comes of it, the sink is as it was.

    Raises:
        RefusedError: a node, or this process, cannot do the job.
    """
    errand = NodeCheck(storage, sink_uri, secrets.token_hex(8), source_uri)
    made = _missing_folders(errand.mark)
    nodes = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and {"CPU", "GPU"} & node["Resources"].keys()
    }
    try:
        _leave_mark(errand)
        waiting = _ask(errand, nodes)
        yield
        _hear(errand, waiting, nodes, say)
    finally:
        for uri in (errand.mark, *map(errand.mark_of, nodes)):
            storage.delete(uri)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _leave_mark(errand: NodeCheck) -> None:
    try:
        errand.storage.put_bytes(errand.mark, errand.token.encode())
    except (AccessDeniedError, NotFoundError) as error:
        raise SinkError(f"the sink cannot be used: {error}") from None


def _ask(errand: NodeCheck, nodes: Iterable[str]) -> dict[Any, str]:
    """Return the node by the reference to its answer."""
    names, waiting = _packages(), {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(_question(errand, names, node))
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        waiting[task.options(**options).remote()] = node
    return waiting


def _hear(
    errand: NodeCheck,
    waiting: dict[Any, str],
    addresses: dict[str, str],
    say: Callable[[str], None],
) -> None:
    expected, deadline = _versions(), time.monotonic() + _LIMIT_S
    while waiting:
        answers, _ = ray.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not answers:
            late = ", ".join(addresses[node] for node in waiting.values())
            say(f"no answer within {_LIMIT_S:g} s from {late}: going on without")
            return
        for answer in answers:
            node = f"node {addresses[waiting.pop(answer)]}"
            try:
                said: Answer = ray.get(answer)
            except ray.exceptions.RuntimeEnvSetupError as error:
                line = str(error).strip().splitlines()[0][:300]
                raise ConfigError(f"{node}: no runtime environment there: {line}") from None
            except ray.exceptions.RayTaskError as error:
                raise ConfigError(f"{node} cannot be asked: {error.cause}") from None
            except ray.exceptions.RayError:  # it has died
                continue
            _judge(errand, node, said, expected)


def _judge(errand: NodeCheck, node: str, said: Answer, expected: dict[str, str]) -> None:
    """Raise what is to be said of an answer that is not as it must be."""
    if "missing" in said:
        raise ConfigError(
            f"{node} cannot import cvbatch {__version__} ({said['missing']}): {_REMEDY}"
        )
    others = [
        f"{name} {said['versions'][name]} instead of {version}"
        for name, version in expected.items()
        if said["versions"][name] != version
    ]
    if others:
        raise ConfigError(f"{node} has {', '.join(others[:5])}: {_REMEDY}")
    what, how = said["fault"]
    if what == "source":
        raise SourceError(
            f"{node} cannot read the source: {how}; name a store or a folder that all nodes "
            "reach, and give them the credentials for it"
        )
    if what == "sink":
        raise SinkError(
            f"{node} cannot write the sink {errand.sink_uri}: {how}; name a store or a "
            "folder that all nodes share, and give them the credentials for it"
        )


def _missing_folders(uri: str) -> list[Path]:
    """Return the local folders above a URI that are not there, the innermost first."""
    place = store.Location.of(uri)
    parents = Path(place.path).parents if place.scheme == "file" else ()
    return [folder for folder in parents if not folder.exists()]


def _packages() -> list[str]:
    """Return the packages whose versions must be the same everywhere: what cvbatch needs."""
    try:
        needs = metadata.requires("cvbatch") or []
    except metadata.PackageNotFoundError:  # it runs from a folder
        return []
    return [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]


def _versions() -> dict[str, str]:
    """Return the versions that this process has."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    said = {"Python": python, "cvbatch": __version__}
    return said | {name: metadata.version(name) for name in _packages()}
