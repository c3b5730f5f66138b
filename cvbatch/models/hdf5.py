"""h5py, which only the extra `tensorflow` installs: every module takes it from here."""

from __future__ import annotations

from cvbatch.core.extras import TENSORFLOW, require

require("h5py", TENSORFLOW)

import h5py  # noqa: E402 - after the check

__all__ = ["h5py"]
