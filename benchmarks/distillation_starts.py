"""The students of `distillation.py` before any lesson: ours, and what else one could take."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from dsconvert import apply, cost, plan
from dsconvert.model.editing import copied
from dsconvert.model.inputs import sampler_of
from dsconvert.model.norms import fold, norm_kind
from dsconvert.records import Plan

RATIO = 12.0
METHODS = ("ours", "svd", "random", "bsconv-u", "bsconv-s", "pruned")
RANDOM = ("random", "bsconv-u", "bsconv-s")
KEPT = ("synthesis.init.*", "synthesis.se_*")
"""InitLayer and the excitation branches are many parameters and few MACs: left dense."""


def twelvefold(teacher: nn.Module) -> Plan:
    """Rank 1 in every block, and a rank more behind the first upsamples while the MACs last."""
    decided = plan(teacher, preset="fast", refit=KEPT)
    before = cost(teacher).macs
    spare = [d.site for d in decided.decisions if d.rule == "up-pw-dw"]
    for site in spare:
        richer = replace(
            decided,
            decisions=tuple(replace(d, rank=2) if d.site == site else d for d in decided.decisions),
        )
        after = cost(apply(teacher, richer, init="svd", calibrate=0).model).macs
        if before / after < RATIO:
            break
        decided = richer
    return decided


def folded(teacher: nn.Module) -> nn.Module:
    """A copy with plain kernels, and without what never runs: what other packages can take."""
    made = apply(teacher, plan(teacher, preset="fast", keep=("*",)), init="svd", calibrate=0).model
    made = copied(made)
    for module in made.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and norm_kind(module) != "none":
            fold(module)
    return made.requires_grad_(True)


def restated(model: nn.Module, sampler, *, batches: int = 16, batch: int = 16) -> nn.Module:
    """Batch statistics of a model that has none of its own yet: averages over fresh latents."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(batches):
            model(*sampler(batch, generator))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def bsconv_u(teacher: nn.Module, macs: int) -> nn.Module:  # noqa: ARG001 - as the others
    """What bsconv makes of every 3x3 convolution; it has no cost to choose."""
    from bsconv.pytorch import BSConvU_Replacer

    torch.manual_seed(0)
    return BSConvU_Replacer().apply(folded(teacher))


def bsconv_s(teacher: nn.Module, macs: int) -> nn.Module:
    """The largest subspace whose cost is no more than ours."""
    from bsconv.pytorch import BSConvS_Replacer

    for percent in range(100, 4, -1):
        torch.manual_seed(0)
        made = BSConvS_Replacer(p=percent / 100).apply(folded(teacher))
        if cost(made).macs <= macs:
            made.__dict__.pop("reg_loss", None)  # a method of the instance, which no pickle holds
            return made
    raise ValueError("no subspace of bsconv is as cheap as ours")


class Gated(nn.Module):
    """Convolution, normalisation and gated linear unit, as two branches that are multiplied."""

    def __init__(self, conv: nn.Module, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.value, self.gate = (self._half(conv, norm, i) for i in (0, 1))

    @staticmethod
    @torch.no_grad()
    def _half(conv: nn.Module, norm: nn.BatchNorm2d, which: int) -> nn.Sequential:
        axis = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
        width = norm.num_features // 2
        mine = type(conv)(
            conv.in_channels, width, conv.kernel_size, conv.stride, conv.padding, bias=False
        )
        mine.weight.copy_(conv.weight.chunk(2, axis)[which])
        own = nn.BatchNorm2d(width, eps=norm.eps)
        for name, tensor in own.state_dict().items():
            if tensor.dim():
                tensor.copy_(norm.state_dict()[name].chunk(2)[which])
        return nn.Sequential(mine, own)

    def forward(self, x: Tensor) -> Tensor:
        """As the three layers it stands for."""
        return self.value(x) * torch.sigmoid(self.gate(x))


def taken_apart(model: nn.Module) -> nn.Module:
    """What Torch-Pruning can follow: every gated unit as two branches, and no noise.

    It does not see that a GLU ties channel i to channel i + C, and it takes the noise's one weight
    for a row of channels; either makes it leave most of the generator alone. The noise of these
    generators is faint (weights of 0.005 and less).
    """
    for name, block in list(model.named_modules()):
        if not isinstance(block, nn.Sequential):
            continue
        layers = [m for m in block if type(m).__name__ != "NoiseInjection"]
        made: list[nn.Module] = []
        while layers:
            if len(layers) > 2 and type(layers[2]).__name__ == "GLU":
                made.append(Gated(layers[0], layers[1]))
                layers = layers[3:]
            else:
                made.append(layers.pop(0))
        if len(made) < len(block):
            model.set_submodule(name, nn.Sequential(*made))
    return model


def pruned(teacher: nn.Module, macs: int) -> nn.Module:
    """The least pruning whose cost is no more than ours (a channel ratio, found by bisection)."""
    import torch_pruning as tp

    inputs = sampler_of(teacher)(1, torch.Generator().manual_seed(0))

    def at(ratio: float) -> nn.Module:
        model = taken_apart(folded(teacher)).eval()
        pruner = tp.pruner.MetaPruner(
            model,
            inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[model.synthesis.to_big],
            root_module_types=[nn.Conv2d, nn.ConvTranspose2d],
        )
        pruner.step()
        return model

    low, high = 0.3, 0.95
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)).macs > macs else (low, middle)
    return at(high)


def build(name: str, teacher: nn.Module, calibrate: int) -> nn.Module:
    """The student of one method, before any lesson."""
    decided = twelvefold(teacher)
    if name in ("ours", "svd", "random"):
        init = {"ours": "fit", "svd": "svd", "random": "random"}[name]
        made = apply(teacher, decided, init=init, calibrate=calibrate).model
    else:
        macs = cost(apply(teacher, decided, init="svd", calibrate=0).model).macs
        made = {"bsconv-u": bsconv_u, "bsconv-s": bsconv_s, "pruned": pruned}[name](teacher, macs)
    if name in RANDOM or name == "pruned":
        made = restated(copy.deepcopy(made), sampler_of(teacher))
    return made
