"""What is installed and what is published: extras, the wheel, and an sdist that can be tested."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from dsconvert.util.extras import EXTRAS, pip_install

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomllib is younger than this Python")

ROOT = Path(__file__).resolve().parents[1]


def extras() -> dict[str, list[str]]:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return data["project"]["optional-dependencies"]


def _hook(name: str, source: Path, target: Path) -> Path:
    """Run one hook of the build backend, which may be called only once in a process."""
    code = (
        "import sys; from setuptools import build_meta as b\n"
        f"open(sys.argv[1] + '/name', 'w').write(b.{name}(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target / (target / "name").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def listed() -> list[str]:
    """The files that belong to this checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: what belongs to it is not known")
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    return [n for n in done.stdout.split("\0") if (ROOT / n).is_file()]


@pytest.fixture(scope="module")
def sdist(listed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy and unpacked."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 is not installed")
    folder = tmp_path_factory.mktemp("sdist")
    for name in listed:
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "copy" / name).write_bytes((ROOT / name).read_bytes())
    with tarfile.open(_hook("build_sdist", folder / "copy", folder)) as archive:
        # Older patch releases of Python (3.10.11, 3.11.3) know no filters.
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **options)
    # Before Python 3.11 a slash at the end of a pattern says nothing.
    (unpacked,) = (p for p in folder.glob("dsconvert-*") if p.is_dir())
    return unpacked


def test_messages_name_the_packages_of_the_extras() -> None:
    said = extras()
    for name, packages in EXTRAS.items():
        assert list(packages) == said[name], name
    assert pip_install("measured") == 'pip install "scipy>=1.9"'


def test_no_message_names_an_extra_of_a_package_that_is_not_published() -> None:
    for path in (*(ROOT / "dsconvert").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "dsconvert[" not in text.replace("``dsconvert[EXTRA]``", "").replace(
            "not ``dsconvert[", ""
        ), path


def test_the_extra_all_holds_every_optional_package_of_a_user() -> None:
    said = extras()
    (whole,) = said["all"]
    named = set(whole.removeprefix("dsconvert[").removesuffix("]").split(","))
    assert named == set(EXTRAS) - {"coreml", "tensorrt"}  # older packages; a card


@pytest.mark.slow
def test_the_sdist_holds_what_the_tests_read(listed: list[str], sdist: Path) -> None:
    names = {str(p.relative_to(sdist)) for p in sdist.rglob("*") if p.is_file()}
    # What git and CI are told is of no use without them.
    # Weights of 20 MB that no test reads are only in the repository.
    wanted = {n for n in listed if not n.startswith((".", "examples/teachers/"))}
    assert wanted <= names
    assert not [n for n in names if n.endswith((".pyc", ".part"))]


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(sdist: Path, tmp_path: Path) -> None:
    """It is built from the sdist, so that holds all that a build needs."""
    names = set(zipfile.ZipFile(_hook("build_wheel", sdist, tmp_path)).namelist())
    packed = {n for n in names if ".dist-info/" not in n}
    assert packed == {
        f"{package}/{p.relative_to(ROOT / folder).as_posix()}"
        for package, folder in (("dsconvert", "dsconvert"), ("dsconvert_adapters", "adapters"))
        for p in (ROOT / folder).rglob("*")
        if p.suffix == ".py" or p.name == "py.typed" or p.parent.name in ("templates", "assets")
    }
