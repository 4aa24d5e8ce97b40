"""Work that goes on with smaller batches where the memory is full."""

from __future__ import annotations

import pytest
import torch

from dsconvert.util.full_memory import halving, is_memory_full


def test_parts_are_halved_until_they_fit_and_stay_small() -> None:
    tried: list[tuple[int, int]] = []

    def run(start: int, stop: int) -> list[int]:
        tried.append((start, stop))
        if stop - start > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(start, stop))

    assert [i for part in halving(run, 11) for i in part] == list(range(11))
    assert tried == [(0, 11), (0, 6), (0, 3), (3, 6), (6, 9), (9, 11)]


def test_one_item_that_does_not_fit_is_the_end() -> None:
    def run(start: int, stop: int) -> None:
        raise MemoryError(f"{start} to {stop}")

    with pytest.raises(MemoryError, match="0 to 1"):
        list(halving(run, 4))


def test_other_errors_are_not_tried_again() -> None:
    tried: list[int] = []

    def run(start: int, stop: int) -> None:
        tried.append(stop - start)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(halving(run, 4))
    assert tried == [4]


def test_the_allocator_of_the_cpu_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_memory_full(caught.value)
