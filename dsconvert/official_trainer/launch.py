"""Start the official ``train.py``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dsconvert.errors import MissingExtraError, UsageError
from dsconvert.formats.official import load_snapshot
from dsconvert.official_trainer.hooks import ConversionSettings, install, worker

_PARTS = ("train.py", "dnnlib", "training", "torch_utils", "pg_modules")


def check_repo(path: str) -> Path:
    """Return the absolute path of the checkout.

    Raises:
        UsageError: the folder is no checkout.
    """
    repo = Path(path).absolute()
    lacking = [p for p in _PARTS if not (repo / p).exists()]
    if lacking:
        raise UsageError(
            f"--repo {path} is no checkout of autonomousvision/projected-gan: it has no "
            f"{', '.join(lacking)}."
        )
    return repo


def resumed(arguments: Sequence[str]) -> str | None:
    """Return the file that the official arguments resume from, if any."""
    words = list(arguments)
    for i, word in enumerate(words):
        if word == "--resume" and i + 1 < len(words):
            return words[i + 1]
        if word.startswith("--resume="):
            return word.partition("=")[2]
    return None


def train(settings: ConversionSettings, arguments: Sequence[str]) -> None:
    """Run the official trainer with ``arguments``, as its own command line would.

    Raises:
        DsconvertError: the settings do not fit the trainer. The trainer's own errors pass through.
    """
    try:
        click: Any = importlib.import_module("click")
    except ImportError as error:
        raise MissingExtraError(
            "the official code needs: pip install click requests psutil dill scipy ninja"
        ) from error
    if settings.resume is not None:
        load_snapshot(settings.resume)  # fail before the trainer starts
    install(settings)
    code = _train_module(Path(settings.repo))
    code._dsconvert_subprocess_fn = getattr(code, "_dsconvert_subprocess_fn", code.subprocess_fn)
    # Spawned processes import this function by its name and install the hooks.
    code.subprocess_fn = partial(worker, settings)
    streams = sys.stdout, sys.stderr
    try:
        code.main.main(args=list(arguments), prog_name="train.py", standalone_mode=False)
    except click.ClickException as error:
        raise UsageError(f"train.py: {error.format_message()}") from error
    except click.exceptions.Exit:
        return
    except click.Abort:
        raise KeyboardInterrupt from None
    finally:
        # The official logger replaces both and does not restore them.
        sys.stdout, sys.stderr = streams


def _train_module(repo: Path) -> Any:
    known = sys.modules.get("train")
    if known is not None and Path(str(known.__file__)) == repo / "train.py":
        return known
    spec = importlib.util.spec_from_file_location("train", repo / "train.py")
    if spec is None or spec.loader is None:
        raise UsageError(f"{repo / 'train.py'} can't be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules["train"]
        raise UsageError(
            f"the official train.py can't be imported: {error}. Install what it needs: "
            f"pip install {getattr(error, 'name', None) or 'its requirements'}"
        ) from error
    return module
