"""The folder for what can be made or fetched again. A matter of the machine, not of a run, so the environment says."""

import os
from pathlib import Path

from selfpatch.errors import UserError

FOLDER, GIGABYTES = "SELFPATCH_CACHE", "SELFPATCH_CACHE_GB"
DEFAULT_GIGABYTES = 20


def cache_folder() -> Path:
    """SELFPATCH_CACHE, or `selfpatch` in the user's cache folder. It need not exist."""
    if given := os.environ.get(FOLDER):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfpatch"


def cache_limit() -> int:
    """Bytes of remote files to keep (SELFPATCH_CACHE_GB); 0: none.

    Raises:
        UserError: it is no number.
    """
    text = os.environ.get(GIGABYTES, str(DEFAULT_GIGABYTES))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e9:
        raise UserError(f"{GIGABYTES} is {text[:40]!r}; it must be a number of gigabytes, 0 or more")
    return int(gigabytes * 1e9)
