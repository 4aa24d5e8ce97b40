"""Build the wheel and the sdist from the committed files, and check both.

    python tools/check_dist.py FOLDER [--tests "not slow and not extended"] [--paths tests/cli ...]

twine checks the metadata; the wheel is unpacked alone and its command is run; the tests of the
sdist are run from the unpacked sdist. The packages that dsconvert needs must be installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str, cwd: Path, path: Path | None = None) -> None:
    """Run a command; ``path`` is the only place that Python packages are taken from besides."""
    print("+", " ".join(words), flush=True)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    subprocess.run(words, cwd=cwd, check=True, env=env)


def empty(folder: Path) -> None:
    """Make ``folder``, or delete the wheel and the sdist of an earlier check in it.

    Raises:
        SystemExit: it is a file, or holds anything else. Nothing is deleted then.
    """
    if folder.exists() and not folder.is_dir():
        raise SystemExit(f"{folder} is a file; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    ours = [*folder.glob("dsconvert-*.whl"), *folder.glob("dsconvert-*.tar.gz")]
    others = sorted(set(folder.iterdir()) - set(ours))
    if others:
        raise SystemExit(
            f"{folder} holds other files than a wheel and an sdist of dsconvert "
            f"({others[0].name}); name a new folder."
        )
    for path in ours:
        path.unlink()


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets the wheel and the sdist, and nothing else")
    parser.add_argument("--tests", default="not slow and not extended", help="of the sdist")
    parser.add_argument("--paths", nargs="+", default=["tests"], help="of these tests")
    options = parser.parse_args(argv)
    out = options.folder.resolve()
    empty(out)
    python = sys.executable
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        # From a clean copy: whatever else lies in the working tree must not get in.
        copy = scratch / "copy"
        run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(copy), cwd=ROOT)
        run(python, "-m", "build", "--no-isolation", "--outdir", str(out), cwd=copy)
        files = sorted(out.iterdir())
        run(python, "-m", "twine", "check", "--strict", *map(str, files), cwd=scratch)
        wheel = next(f for f in files if f.suffix == ".whl")
        sdist = next(f for f in files if f.name.endswith(".tar.gz"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "wheel")
        licences = [*(scratch / "wheel").glob("*.dist-info/licenses/*")]
        if not licences:
            raise SystemExit(f"{wheel.name} holds no licence")
        run(python, "-m", "dsconvert", "--version", cwd=scratch, path=scratch / "wheel")
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        unpacked = scratch / sdist.name.removesuffix(".tar.gz")
        words = ("-q", "-m", options.tests, *options.paths)
        # The adapters' package has its name, and its entry points, only where it is installed.
        run(python, "-m", "pytest", *words, cwd=unpacked, path=scratch / "wheel")
    print(f"checked: {', '.join(f.name for f in files)} in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
