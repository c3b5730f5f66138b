"""Assign images to train, validation and test by a hash of their id.

The id alone decides, so that additional images never change the split of existing ones.
"""

from __future__ import annotations

import hashlib

from cvbatch.core.errors import ConfigError

Shares = tuple[float, float, float]  # train, validation, test
DEFAULT_SHARES: Shares = (0.8, 0.1, 0.1)
_TOLERANCE = 1e-6


def parse_shares(text: str) -> Shares:
    """Parse the shares of train, validation and test, such as `0.8,0.1,0.1`.

    Raises:
        ConfigError: there are not three, they do not sum to 1, or the share of train is 0.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    is_complete = len(shares) == 3 and abs(sum(shares) - 1) <= _TOLERANCE
    if not is_complete or min(shares) < 0 or shares[0] == 0:
        raise ConfigError(
            f"the split {text!r} must be three shares for train, validation and test that sum to "
            "1, the first above 0, such as 0.8,0.1,0.1"
        )
    return shares[0], shares[1], shares[2]


def _hash_fraction(image_id: str, seed: int) -> float:
    """Return a number in [0, 1) that is uniformly distributed over image ids."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return int.from_bytes(digest[:7]) / 256**7  # 56 bits: below 1 also as a float


def choose_split(image_id: str, declared: str | None, shares: Shares, seed: int) -> str:
    """Return the split of an image: "train", "validation" or "test".

    Args:
        image_id: the id that is hashed.
        declared: the split in the data set. "trainval" is divided between train and validation,
            None between all three; any other split is returned unchanged.
        shares: shares of train, validation and test; they sum to 1.
        seed: seed of the hash.
    """
    if declared is not None and declared != "trainval":
        return declared
    fraction = _hash_fraction(image_id, seed)
    train, validation, test = shares
    if declared == "trainval":
        fraction *= train + validation
    if fraction < train:
        return "train"
    return "validation" if fraction < train + validation or test == 0 else "test"
