"""Endless batches of images, in an order that depends on the seed and the position alone.

Position p of the stream is item ``p mod M`` of epoch ``p div M``; each epoch has its own
permutation. A run that starts at any position therefore gets the images that an uninterrupted run
gets there, and two processes together get the images that one process gets. Nothing is restarted
at the end of an epoch, so small sets are as fast as large ones.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dsconvert.data.device_images import device_images
from dsconvert.data.images import ImageSet
from dsconvert.errors import DataError

_LOG = logging.getLogger(__name__)
Item = tuple[Tensor, int, str | None]


class ShuffledImages(Dataset[Item]):
    """Maps positions of the stream to images; any process may ask for any position."""

    def __init__(self, images: ImageSet, *, mirror: bool, seed: int) -> None:
        self.images, self.mirror, self.seed = images, mirror, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64, device="cpu")

    def place(self, position: int) -> tuple[int, bool]:
        """Return the index of the image at ``position``, and whether it is flipped.

        With ``mirror`` an epoch has each image twice, once flipped, as the official option does.
        """
        count = len(self.images)
        epoch, at = divmod(position, count * (1 + self.mirror))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            size = count * (1 + self.mirror)
            self._epoch = epoch
            self._permutation = torch.randperm(size, generator=generator, device="cpu")
        flipped, index = divmod(int(self._permutation[at]), count)
        return index, bool(flipped)

    def __getitem__(self, position: int) -> Item:
        index, flipped = self.place(position)
        image, index, problem = self.images.image(index)
        return (image.flip(2) if flipped else image), index, problem


class _Positions:
    """The positions of each batch, without end."""

    def __init__(self, *, batch: int, start: int, rank: int, world: int) -> None:
        self.batch, self.start, self.rank, self.world = batch, start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch // self.world
        at = self.start
        while True:
            first = at + self.rank * share
            yield list(range(first, first + share))
            at += self.batch


def _collate(items: list[Item]) -> tuple[Tensor, Tensor, list[str]]:
    images = torch.stack([i for i, _, _ in items])
    problems = [p for _, _, p in items if p is not None]
    return images, torch.tensor([n for _, n, _ in items], device="cpu"), problems


def _ignore_ctrl_c(_worker: int) -> None:
    """Ignore SIGINT in a worker: a terminal sends it to every process of a run.

    The run still needs the batch to end its step and save. SIGTERM is not ignored, because torch
    ends the workers by it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _keep_sigchld_handler() -> Generator[None, None, None]:
    """Undo torch's SIGCHLD handler, which raises in the main thread when a worker has died.

    Raised within a step, that error would leave the networks half changed. The loader still finds
    a dead worker, and raises, when the run waits for the next batch.
    """
    inside = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if inside:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


class ImageStream:
    """Batches ``(images uint8 (n, C, R, R), labels float32 (n, classes))`` of one process.

    Args:
        images: the data set.
        batch: images of one step over all processes; each process gets an equal slice.
        mirror: also give each image flipped.
        seed: of the order.
        start: the position to start from, in images.
        rank: of this process.
        world: number of processes.
        workers: processes that read ahead; a decoded set uses none.
        device: of the training. If it is CUDA and has room, images stay there once they are read,
            and batches are there; those on the CPU are otherwise in pinned memory.

    Raises:
        DataError: the batch is not a multiple of the number of processes.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch: int,
        mirror: bool = False,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        if batch % world:
            raise DataError(f"a batch of {batch} can't be shared by {world} processes evenly.")
        self.images = images
        self.unreadable: set[str] = set()
        """The images that could not be read so far, each with the reason."""
        self._order = ShuffledImages(images, mirror=mirror, seed=seed)
        self._from = partial(_Positions, batch=batch, rank=rank, world=world)
        self._batch, self._next, self._workers = batch, start, workers
        self._positions = iter(self._from(start=start))
        self._kept = device_images(images, device)
        self._pinned = torch.cuda.is_available() and (device is None or device.type == "cuda")
        self._batches: Iterator[tuple[Tensor, Tensor, list[str]]] | None = self._reader()

    def _reader(self) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Return the batches from the next one on."""
        positions, order = self._from(start=self._next), self._order
        if self.images.decoded is not None:
            batches = (_collate([order[p] for p in group]) for group in positions)
            return _pinned(batches) if self._pinned else batches
        # A copy, because each process that reads has its own epoch.
        loader: DataLoader[Item] = DataLoader(
            ShuffledImages(self.images, mirror=order.mirror, seed=order.seed),
            batch_sampler=positions,
            num_workers=self._workers,
            collate_fn=_collate,
            pin_memory=self._pinned,
            worker_init_fn=_ignore_ctrl_c,
            generator=torch.Generator().manual_seed(order.seed),
        )
        with _keep_sigchld_handler():
            return iter(loader)

    def release(self) -> bool:
        """Free the images that stay on a device; return whether there were any.

        The batches that follow are the same, read and copied anew.
        """
        if self._kept is None:
            return False
        self._kept = None
        if self._batches is None:
            self._batches = self._reader()
        return True

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        self._next += self._batch
        if self._kept is None:
            images, indices = self._read()
            return images, self.images.label(indices)
        places = [self._order.place(p) for p in next(self._positions)]
        wanted = torch.tensor([index for index, _ in places], device="cpu")
        flipped = torch.tensor([mirrored for _, mirrored in places], device="cpu")
        if self._kept.complete:
            self._batches = None  # the processes that read end
            images, indices = self._kept.take(wanted, flipped)
        else:
            images, indices = self._read()
            images = self._kept.store(wanted, flipped, images, indices)
        return images, self.images.label(indices)

    def _read(self) -> tuple[Tensor, Tensor]:
        """Return the next batch of the reader: images, and their indices."""
        assert self._batches is not None
        try:
            images, indices, problems = next(self._batches)
        except DataError as error:
            # A worker's error comes with its traceback as text; the last line is the message.
            said = str(error).strip().splitlines()[-1].partition("DataError: ")
            raise DataError(said[2] or said[0]) from None
        for problem in problems:
            if problem not in self.unreadable:
                self.unreadable.add(problem)
                _LOG.warning("can't be read, the next image stands in: %s", problem)
        return images, indices


def _pinned(
    batches: Iterator[tuple[Tensor, Tensor, list[str]]],
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    for images, indices, problems in batches:
        yield images.pin_memory(), indices, problems


def to_range(images: Tensor, device: torch.device) -> Tensor:
    """Convert uint8 levels to float32 in [-1, 1], as the official code scales them."""
    return images.to(device, non_blocking=True).to(torch.float32) / 127.5 - 1
