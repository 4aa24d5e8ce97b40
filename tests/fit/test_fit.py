"""The fit: moments are the data, and no layer comes out worse than its start."""

from __future__ import annotations

import pytest
import torch
from dsconvert_adapters.projected_gan.blocks import CCBN
from torch import nn

import dsconvert
from dsconvert.errors import UsageError
from dsconvert.fit.activation_stream import ActivationStream
from dsconvert.fit.moments import channel_mean, moments
from dsconvert.fit.statistics import correct_statistics
from dsconvert.model.sites import find_sites
from tests.models import SITES, decoder, latents, output

GEOMETRIES = (
    "plain",
    "padded",
    "strided",
    "dilated",
    "reflect",
    "rectangular",
    "transposed",
    "transposed odd",
    "transposed dilated",
)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_moments_reproduce_the_convolution(kind):
    """Least squares on the moments of a convolution's own input and output is its kernel."""
    torch.manual_seed(0)
    conv = SITES[kind]().double()
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    x = [torch.randn(6, 6, 9, 10, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        y = [conv(v) for v in x]
    stats = moments(conv, x, y, samples=10_000)
    weight = conv.weight.detach()
    kernel = weight.transpose(0, 1) if isinstance(conv, nn.ConvTranspose2d) else weight
    flat = kernel.flatten(2)
    seen = set()
    for m in stats:
        taps = list(m.taps)
        seen |= set(taps)
        wanted = flat[:, :, taps].transpose(1, 2).flatten(1)
        found = torch.linalg.solve(m.xx, m.xy).t()
        assert torch.allclose(found, wanted, atol=1e-8)
        energy = ((wanted @ m.xx) * wanted).sum(1)
        assert torch.allclose(energy, m.yy, rtol=1e-8)
    assert seen == set(range(flat.shape[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", ["paper", pytest.param("balanced", marks=pytest.mark.extended), "fast"]
)
def test_no_layer_is_worse_than_its_svd(preset):
    model = decoder()
    plan = dsconvert.plan(model, preset=preset, inputs=latents)
    result = dsconvert.apply(model, plan, inputs=latents, calibrate=128)
    measured = [f for f in result.fits if f.fitted is not None]
    assert measured
    for fit in measured:
        assert fit.fitted <= fit.svd * (1 + 1e-6), fit
    assert sum(f.fitted for f in measured) < 0.7 * sum(f.svd for f in measured)
    z = torch.randn(32, 16, generator=torch.Generator().manual_seed(99))
    plain = dsconvert.apply(model, plan, inputs=latents, init="svd", calibrate=0).model
    wanted = output(model, z)
    fitted_error = (output(result.model, z) - wanted).square().mean()
    svd_error = (output(plain, z) - wanted).square().mean()
    assert fitted_error < 0.7 * svd_error


@pytest.mark.slow
def test_deterministic_under_a_seed():
    a = dsconvert.convert(decoder(), inputs=latents, calibrate=32, seed=3)
    torch.randn(7)
    b = dsconvert.convert(decoder(), inputs=latents, calibrate=32, seed=3)
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


def test_the_stream_runs_both_sides_alike():
    """An unchanged student, forced to run on its own, equals the teacher: the same noise draws."""
    model = decoder()
    generator = torch.Generator().manual_seed(0)
    batches = [latents(4, generator) for _ in range(3)]
    seen = []

    def visit(call):
        if call.name == "head":
            for args, other in zip(call.student_args, call.teacher_args, strict=True):
                seen.append(torch.equal(args[0], other[0]))

    _, graph = find_sites(model, example_inputs=batches[0])
    with torch.no_grad():
        ActivationStream(
            graph, model, model, batches,
            visit=visit, changed=frozenset({"start", "head"}),
        ).run()  # fmt: skip
    assert seen == [True] * 3


@pytest.mark.slow
def test_the_stream_drops_latents_but_never_below_two():
    model = decoder()
    generator = torch.Generator().manual_seed(0)
    batches = [latents(4, generator) for _ in range(8)]
    counts = []

    def visit(call):
        counts.append(len(call.wanted))

    _, graph = find_sites(model, example_inputs=batches[0])
    with torch.no_grad():
        ActivationStream(
            graph, model, model, batches,
            visit=visit, changed=frozenset({"start", "block1.1", "head"}), budget=100_000,
        ).run()  # fmt: skip
    assert counts[0] > counts[-1] == 2


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_moments_of_an_even_kernel_with_unequal_sides(mode):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 5, (4, 2), padding="same", padding_mode=mode, bias=False).double()
    x = [torch.randn(4, 4, 9, 10, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        y = [conv(v) for v in x]
        (m,) = moments(conv, x, y, samples=10_000)
        kernel = conv.weight.flatten(2).transpose(1, 2).flatten(1)
    assert torch.allclose(((kernel @ m.xx) * kernel).sum(1), m.yy, rtol=1e-8)


@pytest.mark.parametrize("kind", ["plain", "conditional", "vectors"])
def test_statistics_follow_the_inputs(kind):
    """A student whose maps are twice as large and shifted gets the teacher's outputs back."""
    torch.manual_seed(0)
    if kind != "conditional":
        norm = (nn.BatchNorm2d if kind == "plain" else nn.BatchNorm1d)(5).eval()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    else:
        norm = CCBN(5, 3).eval()
        norm.stored_mean.normal_()
        norm.stored_var.uniform_(0.5, 2)
    extra = (torch.randn(6, 3),) if kind == "conditional" else ()
    shape = (60, 5) if kind == "vectors" else (6, 5, 8, 8)
    teacher = [torch.randn(shape) for _ in range(4)]
    student = [2 * t + 1 for t in teacher]
    with torch.no_grad():
        wanted = norm(teacher[0], *extra)
        before = (norm(student[0], *extra) - wanted).abs().max()
        gaps = correct_statistics(norm, student, teacher)
        after = (norm(student[0], *extra) - wanted).abs().max()
    assert gaps is not None
    assert gaps[1] < gaps[0]
    assert before > 1
    assert after < 1e-4


@pytest.mark.slow
def test_statistics_alone_are_re_estimated():
    model = decoder()
    plan = dsconvert.plan(model, preset="paper", inputs=latents)
    off = dsconvert.apply(model, plan, inputs=latents, init="svd", calibrate=0).model
    on = dsconvert.apply(model, plan, inputs=latents, init="svd", calibrate=128).model
    assert not torch.equal(on.block1[3].running_mean, off.block1[3].running_mean)
    pair = off.block1[1].pointwise.weight, on.block1[1].pointwise.weight
    assert torch.equal(*pair)


def test_channel_mean():
    values = [torch.randn(2, 3, 4, 4), torch.randn(5, 3, 2, 2)]
    flat = torch.cat([v.permute(1, 0, 2, 3).flatten(1) for v in values], 1)
    assert torch.allclose(channel_mean(values), flat.mean(1), atol=1e-6)


def blown_up(scale: float, kernel: float = 1.0) -> nn.Sequential:
    """Finite weights and images, with activations of about ``scale`` inside."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 3, 3, padding=1),
        nn.Tanh(),
    )
    model[1].weight.data.mul_(scale)
    model[1].bias.data.normal_().mul_(scale / 8)
    model[5].weight.data.mul_(kernel)
    return model.eval()


def maps(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 8, 8, generator=generator),)


EXTREME = [(1e19, 1), (1e35, 1), (1, 1e25), (1e-20, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "kernel", "preset"),
    [
        *((scale, kernel, "fast") for scale, kernel in EXTREME),
        (1e35, 1, "paper"),
        (1e-20, 1, "paper"),
        *(
            pytest.param(scale, kernel, preset, marks=pytest.mark.extended)
            for scale, kernel, preset in (
                (1e19, 1, "paper"),
                (1, 1e25, "paper"),
                *((scale, 1, p) for scale in (1e10, 1e25) for p in ("paper", "fast")),
            )
        ),
    ],
)
def test_extreme_activations_are_fitted_like_usual_ones(preset, scale, kernel):
    def converted(*how):
        model = blown_up(*how)
        plan = dsconvert.plan(model, preset=preset, inputs=maps)
        return dsconvert.apply(model, plan, inputs=maps, calibrate=16)

    # Where the biases of what follows play no part either.
    usual, extreme = converted(min(scale, 1e6), min(kernel, 1e6)), converted(scale, kernel)
    assert all(v.isfinite().all() for v in extreme.model.state_dict().values())
    assert output(extreme.model, *maps(2, torch.Generator())).isfinite().all()
    assert not any("SVD of the kernel" in n for n in extreme.undone)
    if scale >= 1:  # below, those biases are all there is
        for a, b in zip(usual.fits, extreme.fits, strict=True):
            assert (a.site, a.method) == (b.site, b.method)
            assert b.fitted == pytest.approx(a.fitted, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_activations_that_are_not_finite_leave_the_svd_and_a_note(preset):
    model = blown_up(3e38)
    plan = dsconvert.plan(model, preset=preset, inputs=maps)
    result = dsconvert.apply(model, plan, inputs=maps, calibrate=16)
    start = dsconvert.apply(model, plan, inputs=maps, init="svd", calibrate=0).model
    sites = [f.site for f in result.fits]
    assert sites
    assert [(f.method, f.svd, f.fitted) for f in result.fits] == [("SVD", None, None)] * len(sites)
    for name, value in result.model.state_dict().items():
        assert value.isfinite().all(), name
        assert torch.equal(value, start.state_dict()[name]), name
    (note,) = [n for n in result.undone if "SVD of the kernel" in n]
    assert note.endswith(", ".join(sites))


def test_a_fit_that_fails_leaves_its_start():
    from dsconvert.fit.least_squares import ridge_towards
    from dsconvert.fit.overflow import fit_or_restore
    from dsconvert.fit.sample import Sample

    conv = nn.Conv2d(2, 2, 1)
    x = torch.randn(2, 2, 4, 4)
    sample = Sample(inputs=[x], wanted=[x], held_input=x, held_wanted=x, centred=False)
    start = conv.weight.detach().clone()

    def fails():
        with torch.no_grad():
            conv.weight.fill_(7)
        ridge_towards(torch.zeros(2, 2), torch.full((2, 2), float("inf")), torch.ones(2, 2), 1e-2)

    def not_finite():
        with torch.no_grad():
            conv.weight.fill_(float("nan"))

    with torch.no_grad():
        assert not fit_or_restore(fails, conv, sample)
        assert torch.equal(conv.weight, start)
        assert not fit_or_restore(not_finite, conv, sample)
        assert torch.equal(conv.weight, start)
        assert not fit_or_restore(lambda: conv.weight.fill_(1e200), conv, sample.double())
        assert torch.equal(conv.weight, start)
        assert conv.weight.dtype == torch.float32


def test_a_kernel_that_is_not_finite_as_applied_is_refused():
    model = blown_up(1)
    model[2] = torch.nn.utils.spectral_norm(model[2]).eval()
    with torch.no_grad():
        model[2].weight_orig.zero_()
    with pytest.raises(UsageError, match="kernel of 2 is not finite"):
        dsconvert.convert(model, preset="paper", inputs=maps, calibrate=8)
