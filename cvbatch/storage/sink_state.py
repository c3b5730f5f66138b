"""A sink belongs to one command: what another has left there is not written over, nor among."""

from __future__ import annotations

import json
from typing import Any

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SinkError
from cvbatch.storage import store

# By what lies under `_cvbatch/`: the command that put it there.
STATES = {
    "job": "predict",
    "training": "train",
    "evaluation": "evaluate",
    "explain": "explain",
    "import": "import",
}


def refuse_others(uri: str, own: str) -> None:
    """Raise SinkError where a sink belongs to another command than `own`, a key of STATES."""
    for state, command in STATES.items():
        if state != own and store.exists(state_uri(uri, state)):
            raise SinkError(
                f"sink {uri} holds _cvbatch/{state}.json: `cvbatch {command}` has its result "
                "there; name another sink"
            )


def state_uri(uri: str, own: str) -> str:
    """Return where a command keeps what it has done in a sink."""
    return store.join(uri, "_cvbatch", f"{own}.json")


def put_state(uri: str, own: str, said: dict[str, Any]) -> None:
    """Write what a command has done in a sink."""
    store.put_bytes(state_uri(uri, own), json.dumps(said, indent=1, ensure_ascii=False).encode())


def held(
    uri: str, own: str, fingerprint: str, *, overwrite: bool, differs: str
) -> dict[str, Any] | None:
    """Return what a command has done in a sink; None where that is nothing, or is to be replaced.

    differs: what is another's where the fingerprint is, for the refusal.

    Raises:
        SinkError: the sink is another command's, holds something else, or cannot be used.
    """
    try:
        refuse_others(uri, own)
        said = json.loads(store.read_bytes(state_uri(uri, own)))
        found = said["fingerprint"]
    except NotFoundError:
        names = [name for name in store.list_names(uri) if name.endswith(".parquet")]
        if names:
            raise SinkError(
                f"sink {uri} holds Parquet files such as {names[0]!r}; name an empty folder"
            ) from None
        return None
    except AccessDeniedError as error:
        raise SinkError(f"the sink cannot be used: {error}") from None
    except (ValueError, LookupError, TypeError):
        if overwrite:
            return None
        raise SinkError(
            f"sink {uri}: _cvbatch/{own}.json is damaged; name another sink, or --overwrite"
        ) from None
    if overwrite:
        return None
    if found != fingerprint:
        raise SinkError(f"sink {uri} holds another {differs}; name another sink, or --overwrite")
    result: dict[str, Any] = said
    return result
