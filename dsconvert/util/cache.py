"""The folder for files that dsconvert downloads or measures once: the only module that knows it."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "DSCONVERT_CACHE"


def cache_folder() -> Path:
    """Return ``$DSCONVERT_CACHE``, or else ``dsconvert`` in the user's cache folder.

    The user's cache folder is ``$XDG_CACHE_HOME``, or ``~/.cache`` where that variable is unset,
    empty or relative (the XDG base directory specification). The folder need not exist.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "dsconvert"
