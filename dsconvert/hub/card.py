"""The model card (``README.md``) of a hub folder."""

from __future__ import annotations

import re

from dsconvert.config.choices import Noise
from dsconvert.hub.measure import SHOWN, CardFacts
from dsconvert.util.numbers import amount
from dsconvert.util.version import VERSION


def card(
    *,
    title: str,
    folder: str,
    adapter: str,
    measured: CardFacts,
    converted: bool,
    noise: Noise,
    names: dict[str, str],
    size: int,
    task: str | None,
    made_by: str | None,
    plan: bool,
) -> str:
    """Return the text of a model card.

    Args:
        title: the heading.
        folder: the folder's name, for the example.
        adapter: the codebase of the generator.
        measured: its cost and quality.
        converted: whether it is a conversion.
        noise: ``zero`` where its noise was left out.
        names: the file that each role of ``measured`` was read from.
        size: bytes of ``model.safetensors``.
        task: the hub's name of what the generator does; None: it has none.
        made_by: the command that made the file; None: unknown.
        plan: whether the folder holds ``plan.json``.
    """
    one = "image" if measured.sounds is None else "sound"
    made = "made small and fast" if converted else "written"
    silent = ", without its noise (`--noise zero`)" if noise == "zero" else ""
    parts = [
        f"{_head(task, converted=converted)}\n# {_line(title)}",
        _samples(measured),
        f"A generator of the codebase `{_line(adapter)}`, {made} by dsconvert {VERSION}. "
        f"`model.safetensors` ({size / 1e6:.1f} MB) holds its weights{silent}, and in its header "
        "its architecture as plain data; nothing in a file is executed.",
        "## Use",
        f"```python\nimport torch\n\nfrom dsconvert import from_pretrained\n\n"
        f"generator = from_pretrained({folder!r})  # or the id of a hub repository\n```",
        "## Cost",
        _costs(measured, names, one, converted=converted),
        f"Seconds are medians of one {one} in plain PyTorch on {_line(measured.device)}, "
        f"{measured.threads} thread(s), the models in turns. MACs are of one {one}, as fvcore "
        "counts them.",
        "## Quality against the original",
        _quality(measured, noise),
        "## How it was made",
        _fenced(made_by) if made_by else "The command was not recorded (`--made-by`).",
        "`plan.json` holds the plan: each convolution, its rule and rank."
        if plan
        else "The plan was not recorded (`--plan`).",
        "The licence of the weights is that of the original's weights.",
    ]
    return "\n\n".join(parts) + "\n"


def _head(task: str | None, *, converted: bool) -> str:
    lines = ["---", "library_name: dsconvert"]
    lines += [] if task is None else [f"pipeline_tag: {task}"]
    lines += ["tags:", "- gan", "- dsconvert"]
    lines += ["- depthwise-separable-convolution"] if converted else []
    return "\n".join([*lines, "---", ""])


def _samples(measured: CardFacts) -> str:
    if measured.sounds is None:
        text = f"![Images of seeds 0 to {SHOWN - 1}](samples.png)"
        if not measured.classes:
            return text
        return (
            f"{text}\n\nThe generator has {measured.classes} classes; here and in the figures "
            f"below, seed i has class i mod {measured.classes}."
        )
    text = f"[Sounds of seeds 0 to {SHOWN - 1}](samples.wav)"
    if "original" not in measured.rows:
        return text
    return f"{text}; [those of the original](samples-original.wav)"


def role_name(role: str, *, converted: bool) -> str:
    """Return the name of a role of the measured files, for a reader."""
    return "converted" if converted and role == "generator" else role


def _costs(measured: CardFacts, names: dict[str, str], one: str, *, converted: bool) -> str:
    rows = [
        f"| | file | parameters | MACs | seconds {'an' if one == 'image' else 'a'} {one} |",
        "|---|---|---|---|---|",
    ]
    for role, each in measured.costs.items():
        name = role_name(role, converted=converted)
        rows.append(
            f"| {name} | {_line(names[role])} | {amount(each.parameters)} | {amount(each.macs)} | "
            f"{each.seconds:.4g} |"
        )
    first, last = measured.costs.get("original"), measured.costs["generator"]
    if first is not None:
        macs = f"{first.macs / last.macs:.2f}x fewer" if first.macs and last.macs else "-"
        rows.append(
            f"| | | {first.parameters / last.parameters:.2f}x fewer | {macs} | "
            f"{first.seconds / last.seconds:.2f}x faster |"
        )
    return "\n".join(rows)


def _quality(measured: CardFacts, noise: Noise) -> str:
    found = measured.quality
    if found is None:
        return "Not measured: the original was not given (`--original`)."
    if found.stft_distance is not None:
        return (
            f"STFT distance {found.stft_distance:.3f} (mean of {found.seeds} seeds, equal "
            f"spectrograms), {found.stft_distance_worst:.3f} (worst); 0 for equal sounds."
        )
    drawn = "latents, classes" if measured.classes else "latents"
    equal = f"{drawn}, the original with its noise" if noise == "zero" else f"{drawn} and noise"
    text = (
        f"PSNR {found.psnr_db:.1f} dB (mean of {found.seeds} seeds, equal {equal}), "
        f"{found.psnr_db_worst:.1f} dB (worst)."
    )
    if found.distance is None:
        return text
    fd = found.distance
    verdict = "distinguishable" if fd["distinguishable"] else "not distinguishable"
    images = "images of random classes" if measured.classes else "images"
    return (
        f"{text} FD-lite0 over {fd['samples']} {images} {fd['value']:.1f}; floor (the original "
        f"against itself, other latents) {fd['floor']:.1f}; difference {fd['interval'][0]:.1f} to "
        f"{fd['interval'][1]:.1f}: {verdict}."
    )


def _line(text: str) -> str:
    """Return ``text`` on one line, without characters that end a cell or begin markup."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """Return ``text`` as a block of code, whatever it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text.strip()}\n{fence}"
