"""Which split an image belongs to: by its id alone, so that new images never move the old ones."""

from __future__ import annotations

import hashlib

from cvbatch.core.errors import ConfigError

Shares = tuple[float, float, float]  # train, validation, test
DEFAULT_SHARES: Shares = (0.8, 0.1, 0.1)
_TOLERANCE = 1e-6


def parse_shares(text: str) -> Shares:
    """Return shares that were written as `0.8,0.1,0.1`.

    Raises:
        ConfigError: they are not three, do not sum to 1, or leave nothing to train on.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    is_whole = len(shares) == 3 and abs(sum(shares) - 1) <= _TOLERANCE
    if not is_whole or min(shares) < 0 or shares[0] == 0:
        raise ConfigError(
            f"the split {text!r} must be three shares for train, validation and test that sum to "
            "1, the first above 0, such as 0.8,0.1,0.1"
        )
    return shares[0], shares[1], shares[2]


def place_of(image_id: str, seed: int) -> float:
    """Return where an image stands between 0 and 1, evenly over all ids."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return int.from_bytes(digest[:7]) / 256**7  # 56 bits: below 1 also as a float


def choose_split(image_id: str, own: str | None, shares: Shares, seed: int) -> str:
    """Return "train", "validation" or "test".

    own: the data set's word. "trainval" is divided as `shares` divide the two, None in three.
    """
    if own is not None and own != "trainval":
        return own
    place = place_of(image_id, seed)
    train, validation, test = shares
    if own == "trainval":
        place *= train + validation
    if place < train:
        return "train"
    return "validation" if place < train + validation or test == 0 else "test"
