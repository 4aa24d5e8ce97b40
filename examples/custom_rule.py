"""A rewrite rule of your own: a k x k convolution as a vertical one and a horizontal one.

The idea is Jaderberg, Vedaldi & Zisserman, "Speeding up Convolutional Neural Networks with Low
Rank Expansions" (2014). The kernel ``(O, I, kh, kw)`` is read as a matrix with rows ``(i, y)``
and columns ``(o, x)`` and cut to rank R: ``(kh, 1)`` from I to R channels, then ``(1, kw)`` from R
to O. The rule brings its own fit: least squares of the horizontal factor on the activations behind
the vertical one.

    python examples/custom_rule.py
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn

from dsconvert import apply, plan
from dsconvert.fit import Sample, fit_dense
from dsconvert.records import Site
from dsconvert.rules import Built, FitMethod, Rule, register
from dsconvert.testing import check_rule


def fit_horizontal(module: nn.Module, sample: Sample) -> None:
    """Fit the horizontal factor to the outputs of the original, given the vertical factor's."""
    vertical, horizontal = module.get_submodule("vertical"), module.get_submodule("horizontal")
    assert isinstance(horizontal, nn.Conv2d)
    behind = replace(
        sample,
        inputs=[vertical(x) for x in sample.inputs],
        held_input=vertical(sample.held_input),
    )
    fit_dense(horizontal, behind)


class VerticalHorizontal(Rule):
    """See the module's docstring. A rule has no state, and makes ``torch.nn`` modules only."""

    name = "vertical-horizontal"
    fit = FitMethod(name="horizontal least squares", run=fit_horizontal)

    def why_not(self, site: Site) -> str | None:
        """Return a reason that a person can read, or None where the rule applies."""
        if site.kind != "conv" or site.groups != 1 or site.custom is not None:
            return "only plain, ungrouped convolutions"
        if min(site.kernel_size) == 1:
            return "a kernel of one row or column is one-dimensional already"
        return None

    def max_rank(self, site: Site) -> int:
        """The matrix is ``(I kh) x (O kw)``: at its smaller side the cut is exact."""
        kh, kw = site.kernel_size
        return min(site.in_channels * kh, site.out_channels * kw)

    def params(self, site: Site, rank: int) -> int:
        """Count both factors, and the bias."""
        kh, kw = site.kernel_size
        bias = site.out_channels if site.bias else 0
        return rank * (site.in_channels * kh + site.out_channels * kw) + bias

    def macs(self, site: Site, rank: int) -> int | None:
        """The first runs on (output rows x input columns), the second on the output's pixels."""
        if site.calls is None or site.input_shape is None or site.output_shape is None:
            return None
        kh, kw = site.kernel_size
        rows, columns = site.output_shape[-2:]
        first = rows * site.input_shape[-1] * site.in_channels * kh
        return site.calls * rank * (first + rows * columns * site.out_channels * kw)

    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:
        """Cut the kernel; report the share of its energy that is lost."""
        out, inp, kh, kw = kernel.shape
        matrix = kernel.permute(1, 2, 0, 3).reshape(inp * kh, out * kw)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        root = s[:rank].sqrt()
        down, across = u[:, :rank] * root, root[:, None] * v[:rank]

        pad = site.padding if isinstance(site.padding, tuple) else None
        common = {"padding_mode": site.padding_mode, "device": kernel.device, "dtype": kernel.dtype}
        with torch.random.fork_rng():  # the constructors draw, and a conversion must not
            vertical = nn.Conv2d(
                inp, rank, (kh, 1), stride=(site.stride[0], 1), dilation=(site.dilation[0], 1),
                padding=(pad[0], 0) if pad else site.padding, bias=False, **common,
            )  # fmt: skip
            horizontal = nn.Conv2d(
                rank, out, (1, kw), stride=(1, site.stride[1]), dilation=(1, site.dilation[1]),
                padding=(0, pad[1]) if pad else site.padding, bias=bias is not None, **common,
            )  # fmt: skip
        vertical.weight.data.copy_(down.t().reshape(rank, inp, kh, 1))
        horizontal.weight.data.copy_(across.reshape(rank, out, kw).transpose(0, 1)[:, :, None])
        if bias is not None and horizontal.bias is not None:
            horizontal.bias.data.copy_(bias)
        lost = float(s[rank:].square().sum() / s.square().sum().clamp_min(1e-30))
        return Built(
            module=nn.Sequential(OrderedDict(vertical=vertical, horizontal=horizontal)),
            residual=lost,
        )


RULE = VerticalHorizontal()


def maps(n: int, generator: torch.Generator) -> tuple[Tensor]:
    """Sample inputs (n, 8, 24, 20) as generators have them: few independent, smooth channels."""
    coarse = torch.randn(n, 3, 6, 5, generator=generator)
    mixing = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    return (torch.einsum("oi,nihw->nohw", mixing, smooth),)


def main() -> None:
    """Check the rule, then use it on a model of your own at a low and at the exact rank."""
    check_rule(RULE)
    register(RULE)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding="same"), nn.Tanh()
    ).eval()
    (x,) = maps(2, torch.Generator().manual_seed(9))

    # Presets choose among the built-in rules; any rule can be put into the plan by name.
    base = plan(model, inputs=maps)
    for rank in (4, 8, 24, 48):
        lines = tuple(
            replace(d, action="rewrite", rule=RULE.name, rank=rank, reason="tried by hand")
            if rank <= limit
            else replace(d, action="keep", rule=None, rank=None, reason="rank too high here")
            for d, limit in zip(base.decisions, (24, 48), strict=True)
        )
        result = apply(model, replace(base, decisions=lines), inputs=maps, calibrate=64)
        error = (result.model(x) - model(x)).abs().max()
        print(
            f"rank {rank:2}: {result.before.macs} > {result.after.macs} MACs, "
            f"largest change of the output {error:.1e}"
        )
        for f in result.fits:
            if f.svd is not None and f.fitted is not None:
                print(f"  {f.site}: held-out error {f.svd:.2g} > {f.fitted:.2g} ({f.method})")


if __name__ == "__main__":
    main()
