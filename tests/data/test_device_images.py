"""Images that stay on a device: the batches of the ordinary stream, decoded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsconvert.data import device_images as module
from dsconvert.data.device_images import device_images
from dsconvert.data.images import ImageSet, open_images
from dsconvert.data.stream import ImageStream
from tests.train.parts import encoded, picture, zipped

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {f"{i}.png": encoded(picture(i, (16, 16))) for i in range(7)}
    files["3.png"] = b"no picture"
    return zipped(tmp_path_factory.mktemp("data") / "few.zip", files)


@pytest.mark.parametrize("cache", ["always", "never"])
def test_batches_on_a_device_are_those_of_the_stream(
    cache: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = [0]
    read = ImageSet._decode

    def counted(self: ImageSet, index: int) -> object:
        decoded[0] += 1
        return read(self, index)

    options: dict[str, object] = {"batch": 4, "mirror": True, "seed": 3, "start": 8}
    images = open_images(path, resolution=16, cache=cache)  # type: ignore[arg-type]
    plain = ImageStream(images, **options)  # type: ignore[arg-type]
    wanted = [next(plain) for _ in range(24)]
    monkeypatch.setattr(ImageSet, "_decode", counted)
    monkeypatch.setattr(module, "free_memory", lambda _: 1 << 30)
    kept = ImageStream(images, device=CPU, **options)  # type: ignore[arg-type]
    first = [next(kept) for _ in range(12)]
    before = decoded[0]
    found = [*first, *(next(kept) for _ in range(12))]
    for (a, one), (b, other) in zip(wanted, found, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(one, other)
    assert decoded[0] == before  # nothing is read again
    assert (before == 0) is (cache == "always")
    assert kept.unreadable == plain.unreadable


@pytest.mark.parametrize("cache", ["always", "never"])
@pytest.mark.parametrize("after", [1, 12])
def test_images_that_are_given_up_are_read_again(
    after: int, cache: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before all of them were there, and after it."""
    options: dict[str, object] = {"batch": 4, "mirror": True, "seed": 3, "start": 8}
    images = open_images(path, resolution=16, cache=cache)  # type: ignore[arg-type]
    plain = ImageStream(images, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "free_memory", lambda _: 1 << 30)
    kept = ImageStream(images, device=CPU, **options)  # type: ignore[arg-type]
    for i in range(after + 6):
        if i == after:
            assert kept.release()
            assert not kept.release()
        (a, one), (b, other) = next(plain), next(kept)
        assert torch.equal(a, b)
        assert torch.equal(one, other)


def test_a_set_that_does_not_fit_stays_where_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(path, resolution=16, cache="always")
    size = len(images) * 3 * 16 * 16
    assert device_images(images, None) is None
    assert device_images(images, CPU) is None  # no CUDA device
    monkeypatch.setattr(module, "free_memory", lambda _: 4 * size)
    assert device_images(images, CPU) is not None
    monkeypatch.setattr(module, "free_memory", lambda _: 4 * size - 1)
    assert device_images(images, CPU) is None
