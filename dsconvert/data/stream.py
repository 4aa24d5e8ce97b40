"""Endless batches in an order that depends on nothing but the seed and the position.

Position p of the stream is item ``p mod M`` of epoch ``p div M``, each epoch a permutation of its
own. A run that starts at any position therefore sees what an uninterrupted one sees there, and
two processes see together what one sees alone. No epoch ends anything: a set of a hundred images
costs no more an image than one of a million.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dsconvert.data.images import ImageSet
from dsconvert.errors import DataError

_LOG = logging.getLogger(__name__)
Item = tuple[Tensor, int, str | None]


class Order(Dataset[Item]):
    """Positions of the stream to images; each item may be asked for in any process."""

    def __init__(self, images: ImageSet, *, mirror: bool, seed: int) -> None:
        self.images, self.mirror, self.seed = images, mirror, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def place(self, position: int) -> tuple[int, bool]:
        """The index of the image at ``position``, and whether it is flipped.

        With ``mirror`` an epoch holds each image twice, once flipped, as the official option does.
        """
        count = len(self.images)
        epoch, at = divmod(position, count * (1 + self.mirror))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            size = count * (1 + self.mirror)
            self._epoch, self._permutation = epoch, torch.randperm(size, generator=generator)
        flipped, index = divmod(int(self._permutation[at]), count)
        return index, bool(flipped)

    def __getitem__(self, position: int) -> Item:
        index, flipped = self.place(position)
        image, index, problem = self.images.image(index)
        return (image.flip(2) if flipped else image), index, problem


class _Positions:
    """Lists of positions, one a batch, without end."""

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
    return images, torch.tensor([n for _, n, _ in items]), problems


def _leave_ctrl_c_to_the_run(_worker: int) -> None:
    """A terminal sends it to every process; the run still needs its batch to save and end.

    Not so SIGTERM, by which torch itself ends the readers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _no_errors_from_anywhere() -> Generator[None, None, None]:
    """Take back the handler by which torch raises when a reader has died, wherever the run is.

    Within a step that would leave networks that are half changed. A dead reader is still found, and
    raised, where the next batch is waited for.
    """
    inside = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if inside:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


class Stream:
    """Batches ``(images uint8 (n, C, R, R), labels float32 (n, classes))`` of one process.

    Args:
        images: the set.
        batch: images of one step over all processes; each gets its share, a slice of them.
        mirror: also show each image flipped.
        seed: of the order.
        start: the position to start from, in images.
        rank: of this process.
        world: how many processes.
        workers: processes that read ahead; a set that is decoded already uses none.

    Raises:
        DataError: the batch can't be shared out evenly.
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
    ) -> None:
        if batch % world:
            raise DataError(f"a batch of {batch} can't be shared by {world} processes evenly.")
        self.images = images
        self.unreadable: set[str] = set()
        """What could not be read so far, each with its reason."""
        order = Order(images, mirror=mirror, seed=seed)
        positions = _Positions(batch=batch, start=start, rank=rank, world=world)
        if images.decoded is not None:
            self._batches = (_collate([order[p] for p in group]) for group in positions)
        else:
            loader: DataLoader[Item] = DataLoader(
                order,
                batch_sampler=positions,
                num_workers=workers,
                collate_fn=_collate,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_leave_ctrl_c_to_the_run,
                generator=torch.Generator().manual_seed(seed),
            )
            with _no_errors_from_anywhere():
                self._batches = iter(loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        try:
            images, indices, problems = next(self._batches)
        except DataError as error:
            # A worker's error comes with its traceback as text; the last line is what it said.
            said = str(error).strip().splitlines()[-1].partition("DataError: ")
            raise DataError(said[2] or said[0]) from None
        for problem in problems:
            if problem not in self.unreadable:
                self.unreadable.add(problem)
                _LOG.warning("can't be read, the next image stands in: %s", problem)
        return images, self.images.label(indices)


def to_range(images: Tensor, device: torch.device) -> Tensor:
    """uint8 levels to float32 in [-1, 1], as the official code scales them."""
    return images.to(device, non_blocking=True).to(torch.float32) / 127.5 - 1
