"""Files are written whole: by threads at once, through links, against a rival, on a full disk."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from PIL import Image

from dsconvert.data.pictures import check_picture, save_picture
from dsconvert.errors import ForeignFileError, OutputError, UsageError
from dsconvert.util import files
from dsconvert.util.files import (
    check_regular,
    check_target,
    remove_stale_parts,
    stream,
    whole_file,
    whole_files,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_threads_that_write_into_one_folder_do_not_meet(tmp_path: Path) -> None:
    ready = threading.Barrier(8)

    def work(text: str) -> None:
        ready.wait()
        for _ in range(20):
            with whole_file(tmp_path / text, overwrite=True) as beside:
                beside.write_text(text * 1000)

    jobs = [threading.Thread(target=work, args=(str(i),)) for i in range(8)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == [str(i) for i in range(8)]
    assert all(p.read_text() == p.name * 1000 for p in tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(tmp_path: Path, there: bool) -> None:
    (tmp_path / "big").mkdir()
    link, real = tmp_path / "link.pkl", tmp_path / "big" / "real.pkl"
    link.symlink_to("big/real.pkl")
    if there:
        real.write_text("old")
        with pytest.raises(OutputError, match=r"real.pkl.*exists"):
            check_target(link, overwrite=False)
    with whole_file(link, overwrite=there) as beside:
        assert beside.parent == real.parent
        beside.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert not list(tmp_path.rglob(files.PARTS))


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("no/such")
    (tmp_path / "null").symlink_to(os.devnull)
    for name, said in (("a", "link to itself"), ("c", "does not exist"), ("null", "a device")):
        with pytest.raises(OutputError, match=said):
            check_target(tmp_path / name, overwrite=True)


@pytest.mark.parametrize("links", ["hard links", "none"])
def test_a_file_that_appears_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: str
) -> None:
    if links == "none":

        def refused(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
    target = tmp_path / "o.pkl"

    def work() -> None:
        with whole_file(target, overwrite=False) as beside:
            beside.write_text("mine")
            target.write_text("theirs")

    with pytest.raises(OutputError, match="appeared meanwhile"):
        work()
    assert target.read_text() == "theirs"
    with whole_file(target, overwrite=True) as beside:
        beside.write_text("mine")
    with whole_file(tmp_path / "p.pkl", overwrite=False) as beside:
        beside.write_text("mine")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"o.pkl": "mine", "p.pkl": "mine"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_or_an_interruption_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def work(writer: Callable[..., AbstractContextManager[Path]]) -> None:
        with writer(tmp_path / "o.xml", overwrite=False) as beside:
            beside.write_text("half")
            raise error

    for writer in (whole_file, whole_files):
        with pytest.raises(error):
            work(writer)
    assert not list(tmp_path.iterdir())


def test_several_files_are_placed_together_or_not_at_all(tmp_path: Path) -> None:
    with whole_files(tmp_path / "o.xml", overwrite=False) as beside:
        beside.write_text("graph")
        beside.with_suffix(".bin").write_text("weights")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "o.xml": "graph",
        "o.bin": "weights",
    }

    def beaten() -> None:
        with whole_files(tmp_path / "p.xml", overwrite=False) as beside:
            beside.write_text("graph")
            beside.with_suffix(".bin").write_text("weights")
            (tmp_path / "p.xml").write_text("theirs")

    with pytest.raises(OutputError, match="meanwhile"):
        beaten()
    assert (tmp_path / "p.xml").read_text() == "theirs"
    assert not (tmp_path / "p.bin").exists()
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "o.bin").unlink()
    (tmp_path / "o.bin").symlink_to("other/w.bin")
    with whole_files(tmp_path / "o.xml", overwrite=True) as beside:
        beside.write_text("graph 2")
        beside.with_suffix(".bin").write_text("weights 2")
    assert (other / "w.bin").read_text() == "weights 2"
    assert (tmp_path / "o.bin").is_symlink()
    assert not list(tmp_path.rglob(files.PARTS))


def test_modes_are_those_of_any_new_file_or_of_the_old_one(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with whole_file(tmp_path / "new", overwrite=False) as beside:
        beside.touch()
    assert (tmp_path / "new").stat().st_mode == plain.stat().st_mode
    plain.chmod(0o640)
    with whole_file(plain, overwrite=True) as beside:
        beside.touch()
    assert stat.S_IMODE(plain.stat().st_mode) == 0o640


def test_what_a_killed_process_left_is_recognised(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom dsconvert.util.files import whole_file\n"
        "with whole_file(sys.argv[1], overwrite=False) as beside:\n"
        "    beside.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "o")], cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    assert left.match(files.PARTS)
    remove_stale_parts(tmp_path)
    assert left.exists()  # it may be another process's, at work
    old = time.time() - 7200
    os.utime(left, (old, old))
    remove_stale_parts(tmp_path)
    assert not left.exists()


def test_a_stream_remembers_what_torch_forgets(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with (
            pytest.raises(OutputError, match="File too large"),
            whole_file(tmp_path / "o.pt", overwrite=False) as beside,
            stream(beside) as out,
        ):
            torch.save({"a": torch.zeros(100_000)}, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_writer_without_a_word_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_is_full", lambda _: True)
    with (
        pytest.raises(OutputError, match="no space is left"),
        whole_files(tmp_path / "o.xml", overwrite=False),
    ):
        raise RuntimeError("basic_ios::clear: iostream error")


def test_an_input_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ForeignFileError, match="is a pipe"):
        check_regular(tmp_path / "pipe")
    with pytest.raises(ForeignFileError, match="is a device"):
        check_regular(os.devnull)
    for path in (tmp_path, tmp_path / "no", Path(__file__)):
        check_regular(path)


@pytest.mark.parametrize(
    ("suffix", "name"), [("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP")]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_picture_is_what_its_name_says(tmp_path: Path, suffix: str, name: str, mode: str) -> None:
    save_picture(Image.new(mode, (9, 8)), tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as back:
        assert back.format == name
        assert back.size == (9, 8)


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_other_pictures_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.jpg, \.jpeg or \.webp"):
        check_picture(tmp_path / name, overwrite=False)
    with pytest.raises(UsageError, match="no format of pictures"):
        save_picture(Image.new("RGB", (2, 2)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_picture_too_large_for_its_format(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"at most 16383 a side; write a \.png"):
        save_picture(Image.new("L", (16384, 1)), tmp_path / "a.webp")
