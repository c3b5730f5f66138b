"""A sink belongs to one command: what another has left there is not written over, nor among."""

from __future__ import annotations

from cvbatch.data import store
from cvbatch.errors import SinkError

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
        if state != own and store.exists(store.join(uri, "_cvbatch", f"{state}.json")):
            raise SinkError(
                f"sink {uri} holds _cvbatch/{state}.json: `cvbatch {command}` has its result "
                "there; name another sink"
            )
