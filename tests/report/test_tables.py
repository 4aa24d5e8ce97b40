"""Tables and JSON: every fact of the records is there, names are shown and never obeyed."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from dsconvert.formats.official import SnapshotInfo, inspect_snapshot
from dsconvert.records import Conversion, Cost, Decision, Fit, LayerCost, Plan
from dsconvert.report.inspection import inspection
from dsconvert.report.jsonable import conversion_dict, cost_dict, plan_dict
from dsconvert.report.layout import WIDTH, folded, shortened
from dsconvert.report.tables import (
    Report,
    conversion_report,
    cost_report,
    plan_report,
    rank_report,
)
from dsconvert.report.text import plain, uncounted
from dsconvert.util.numbers import amount, counted, factor, percent, times_fewer


def shown(report: Report, *, width: int = WIDTH) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for thing in report:
        console.print(folded(thing) if isinstance(thing, str) else thing, markup=False)
    return console.file.getvalue()


def one_line(report: Report) -> str:
    """Without the folds."""
    return " ".join(shown(report).split())


def row(text: str, first: str) -> list[str]:
    """The cells of the line whose first cell is ``first``."""
    for line in text.splitlines():
        cells = re.split(r"  +", line.strip())
        if cells[0] == first:
            return cells
    raise AssertionError(f"no line {first!r} in\n{text}")


DECISIONS = (
    Decision(
        site="a.0",
        action="rewrite",
        rule="dw-pw",
        rank=2,
        reason="it is cheap there",
        params_before=36864,
        params_after=5120,
        macs_before=2_360_000_000,
        macs_after=81_900_000,
    ),
    Decision(
        site="b[red]",
        action="keep",
        reason="a 1x1 convolution",
        params_before=64,
        params_after=64,
        macs_before=64,
        macs_after=64,
    ),
    Decision(
        site="c",
        action="remove",
        reason="never runs",
        params_before=72,
        params_after=0,
        macs_before=0,
        macs_after=0,
    ),
)
PLAN = Plan(model="G", preset="test", decisions=DECISIONS, remove=("c",), note="a note")
BEFORE = Cost(
    params=37000,
    macs=2_400_000_000,
    layers=(
        LayerCost(name="a", type="Sequential", params=36864, macs=2_360_000_000),
        LayerCost(name="a.0", type="Conv2d", params=36864, macs=2_360_000_000),
        LayerCost(name="b[red]", type="Conv2d", params=64, macs=64),
        LayerCost(name="c", type="Conv2d", params=72, macs=0),
    ),
    unsupported={"aten::mul": 3},
    uncalled=("c", "c.x"),
)
AFTER = Cost(
    params=5184,
    macs=100_000_000,
    layers=(
        LayerCost(name="a", type="Sequential", params=5120, macs=81_900_000),
        LayerCost(name="a.0", type="Sequential", params=5120, macs=81_900_000),
        LayerCost(name="a.0.depthwise", type="Conv2d", params=120, macs=900_000),
        LayerCost(name="b[red]", type="Conv2d", params=64, macs=64),
        LayerCost(name="new", type="Linear", params=30, macs=30),
    ),
    unsupported={"aten::mul": 5, "aten::sub": 1},
)
FIT = Fit(site="a.0", rank=2, residual=0.816, svd=0.132, fitted=0.0101, method="least squares")
CONVERSION = Conversion(
    model=nn.Identity(),
    plan=PLAN,
    fits=(FIT,),
    before=BEFORE,
    after=AFTER,
    notes=("fitted on 5 latents",),
    seconds={"fit": 1.5},
    psnr=31.42,
)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, "-"),
        (0, "0"),
        (999, "999"),
        (1000, "1.00 K"),
        (9_999, "10.0 K"),
        (99_960, "100 K"),
        (999_400, "999 K"),
        (999_999, "1.00 M"),
        (105_684_175, "106 M"),
        (49_744_760_832, "49.7 G"),
        (5 * 10**12, "5.00 T"),
    ],
)
def test_amounts(value, wanted):
    assert amount(value) == wanted


def test_a_noun_has_the_number_of_its_count():
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_other_numbers():
    assert amount(49_744_760_832, "MAC") == "49.7 GMAC"
    assert [percent(v) for v in (None, 0.0, 0.0101, 0.816, 1.0, 11.07, 1e-9)] == [
        "-", "0.00 %", "1.01 %", "81.6 %", "100 %", "1107 %", "<0.001 %",
    ]  # fmt: skip
    assert [factor(*v) for v in ((10, 4), (4, 5), (10, None), (None, 4), (10, 0), (7, 7))] == [
        "2.50x fewer", "1.25x more", "", "", "", "the same",
    ]  # fmt: skip
    assert factor(0.2, 0.3, less="faster", more="slower") == "1.50x slower"
    assert times_fewer(10, 4, "MACs") == {"times fewer MACs": 2.5}
    assert times_fewer(4, 5, "MACs") == {"times more MACs": 1.25}


def test_names_are_shortened_in_the_middle():
    assert shortened("short", 9) == "short"
    assert shortened("module.layers.block_17.conv1", 15) == "module…17.conv1"
    assert len(shortened("x" * 500, 12)) == 12


def test_sentences_are_folded_and_paths_are_not():
    path = "/a/folder-with-hyphens/" + "x" * 100
    text = folded(f"wrote {path} and a few more words")
    assert path in text.replace("\n", " ").split()
    assert all(len(line) <= WIDTH or path in line for line in text.splitlines())
    assert folded("a\n\nb") == "a\n\nb"


def test_conversion_report():
    text = shown(conversion_report(CONVERSION))
    lines = text.splitlines()
    # The result first.
    assert row(text, "parameters") == ["parameters", "37.0 K > 5.18 K", "7.14x fewer"]
    assert row(text, "MACs") == ["MACs", "2.40 G > 100 M", "24.00x fewer"]
    assert lines[3].startswith("  PSNR        31.4 dB")
    assert row(text, "time")[1:] == ["1.5 s", "(fit 1.5)"]
    assert row(text, "a.0") == [
        "a.0", "dw-pw rank 2", "36.9 K > 5.12 K", "2.36 G > 81.9 M", "1.01 %",
    ]  # fmt: skip
    assert row(text, "b[red]") == ["b[red]", "keep", "64", "64"]
    assert row(text, "c") == ["c", "remove", "72 > 0", "0"]
    assert "kept: a 1x1 convolution: b[red]" in text
    assert "removed: never runs: c" in text
    assert "a note" in text
    assert "fitted on 5 latents" in text
    assert "2 kinds of operators" in text
    assert "mul x5" not in text
    assert "no call" not in text  # of what was removed anyway


def test_details_are_for_verbose():
    text = shown(conversion_report(CONVERSION, verbose=True))
    found = [line.split() for line in text.splitlines() if line.startswith("a.0")]
    assert found[1] == ["a.0", "81.6", "%", "13.2", "%", "it", "is", "cheap", "there"]
    assert "not counted by fvcore: mul x5, sub x1" in text


def test_everything_fits_80_columns_and_no_number_is_lost():
    deep = "model.generator.synthesis.layers.{}.block.convolution.conv1"
    decisions = tuple(
        replace(DECISIONS[0], site=deep.format(i), params_before=999_400_000,
                params_after=998_800_000, macs_before=999_400_000_000, macs_after=998_800_000_000,
                rule="a-rule-of-a-stranger-with-a-long-name", rank=25)
        for i in (0, 17)
    )  # fmt: skip
    fits = tuple(replace(FIT, site=d.site) for d in decisions)
    names = [d.site for d in decisions]
    layers = tuple(
        LayerCost(name=n, type="FullyConnectedLayer", params=999_400_000, macs=999_400_000_000)
        for n in names
    )
    cost = Cost(params=10**9, macs=10**12, layers=layers, unsupported=dict.fromkeys(names, 7))
    plan = replace(PLAN, decisions=decisions)
    conversion = replace(CONVERSION, plan=plan, fits=fits, before=cost, after=cost)
    for verbose in (False, True):
        for report in (
            plan_report(plan, verbose=verbose),
            conversion_report(conversion, verbose=verbose),
            cost_report(cost, cost, verbose=verbose),
            cost_report(cost, verbose=verbose),
            rank_report(cost, [(25, 999_400_000, 999_400_000_000, 1000)], title="t"),
        ):
            text = shown(report)
            assert max(map(len, text.splitlines())) <= WIDTH, text
            for line in text.splitlines():
                if line.startswith("model.gen") and "…" in line:
                    assert "999 M" in line or "%" in line or "cheap" in line, text
    assert "rank 25" in shown(plan_report(plan))
    wide = shown(plan_report(plan), width=200)
    assert deep.format(17) in wide


def test_a_conversion_without_macs_says_why():
    unknown = Cost(params=3, macs=None, layers=(), note="no MACs: because")
    decisions = tuple(replace(d, macs_before=None, macs_after=None) for d in DECISIONS)
    without = replace(
        CONVERSION, before=unknown, after=unknown, plan=replace(PLAN, decisions=decisions)
    )
    text = shown(conversion_report(without))
    assert text.count("no MACs: because") == 1
    assert row(text, "a.0")[3] == "-"
    assert row(text, "MACs")[1] == "unknown"
    assert conversion_dict(without)["before"]["note"] == "no MACs: because"


def test_a_conversion_that_was_not_fitted_has_no_psnr():
    text = shown(conversion_report(replace(CONVERSION, psnr=None, fits=(), seconds={})))
    assert "PSNR" not in text
    assert "error" not in text
    assert ": \n" not in text


def test_plan_report():
    text = shown(plan_report(PLAN))
    assert row(text, "a.0")[1] == "dw-pw rank 2"
    assert row(text, "parameters")[1:] == ["37.0 K > 5.18 K", "7.14x fewer"]
    assert row(text, "MACs")[1] == "2.36 G > 81.9 M"
    assert "a note" in text
    assert "removed whole: c" in text
    unknown = replace(PLAN, decisions=(replace(DECISIONS[0], macs_before=None),))
    assert row(shown(plan_report(unknown)), "MACs")[1] == "- > 81.9 M"
    assert "it is cheap there" in one_line(plan_report(PLAN, verbose=True))


def test_cost_reports():
    alone = shown(cost_report(BEFORE, title="T"))
    assert row(alone, "a.0") == ["a.0", "Conv2d", "36.9 K", "2.36 G"]
    assert row(alone, "parameters") == ["parameters", "37.0 K"]
    assert "Sequential" not in alone
    assert "fewer" not in alone
    assert "no call of these modules was seen: c" in alone
    assert "c.x" not in alone
    both = shown(cost_report(BEFORE, AFTER))
    assert row(both, "a.0") == ["a.0", "Conv2d", "36.9 K > 5.12 K", "2.36 G > 81.9 M"]
    assert row(both, "b[red]") == ["b[red]", "Conv2d", "64", "64"]
    assert row(both, "c")[2] == "72 > 0"
    assert row(both, "new")[2:] == ["0 > 30", "0 > 30"]
    assert "depthwise" not in both
    assert row(both, "MACs")[1:] == ["2.40 G > 100 M", "24.00x fewer"]
    assert row(shown(cost_report(AFTER, BEFORE)), "MACs")[2] == "24.00x more"


def test_operators_are_named_as_a_person_names_them():
    cost = replace(BEFORE, unsupported={"<built-in function getattr>": 2, "aten::mul": 1})
    assert uncounted(cost)[0] == "not counted by fvcore: getattr x2, mul x1"


def test_lines_of_a_cost_add_up_to_the_whole():
    """On a real count: leaves with parameters are all parameters, once each."""
    from dsconvert.core.cost import count

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    cost = count(model, (torch.randn(1, 3, 8, 8),))
    text = shown(cost_report(cost))
    lines = [row(text, name) for name in ("0", "1.0", "1.1")]
    assert sum(int(cells[2]) for cells in lines) == cost.params
    assert row(text, "1.1")[3] == "288"


EVIL = "x\x1b[2J\x07[bold]y\u202e"


def test_names_are_shown_and_never_obeyed():
    decision = replace(DECISIONS[0], site=EVIL, reason=EVIL)
    plan = Plan(model=EVIL, preset="p", decisions=(decision,), note=EVIL)
    cost = Cost(
        params=1,
        macs=1,
        layers=(LayerCost(name=EVIL, type=EVIL, params=1, macs=1),),
        unsupported={EVIL: 1},
        uncalled=(EVIL,),
    )
    info = SnapshotInfo(
        path=EVIL,
        size=1,
        protocol=2,
        opcodes=3,
        writer="pickle",
        adapter=None,
        config={EVIL: EVIL},
        entries=(),
        problems=(),
        safe=True,
        note=EVIL,
    )
    conversion = Conversion(
        model=nn.Identity(), plan=plan, fits=(), before=cost, after=cost, notes=(EVIL,)
    )
    for report in (
        plan_report(plan),
        plan_report(plan, verbose=True),
        conversion_report(conversion),
        conversion_report(conversion, verbose=True),
        cost_report(cost),
        cost_report(cost, cost, title=EVIL),
        inspection(info.as_dict(), verbose=True),
    ):
        # As the command line prints it.
        console = Console(file=io.StringIO(), width=260, color_system=None)
        for thing in report:
            console.print(plain(thing) if isinstance(thing, str) else thing)
        text = console.file.getvalue()
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
        assert r"x\x1b[2J\x07[bold]y\u202e" in text


def test_inspection_of_a_snapshot(snapshot_file: Path):
    lines = inspection(inspect_snapshot(snapshot_file).as_dict())
    assert lines[0] == f"{snapshot_file}: a generator of projected_gan, cfg fastgan"
    text = "\n".join(lines)
    assert row(text, "images")[1] == "128 x 128 px, 3 channels, no classes"
    assert row(text, "converted")[1] == "no"
    assert row(text, "written by")[1] == "dsconvert (the file names no version)"
    assert "G_ema: Generator" in text


def test_json_is_exact_and_whole():
    data = json.loads(json.dumps(conversion_dict(CONVERSION)))
    assert Plan.from_json(json.dumps(data["plan"])) == PLAN
    assert plan_dict(PLAN) == data["plan"]
    assert data["fits"][0]["fitted"] == 0.0101
    assert data["before"] == {
        "params": 37000,
        "macs": 2_400_000_000,
        "unsupported": {"aten::mul": 3},
        "uncalled": ["c", "c.x"],
        "note": None,
        "functional": {},
        "products": 0,
    }
    assert data["notes"] == ["fitted on 5 latents"]
    assert data["seconds"] == {"fit": 1.5}
    assert data["psnr_db"] == 31.42
    assert data["output_error"] is None
    cost = json.loads(json.dumps(cost_dict(AFTER)))
    assert cost["layers"][2]["name"] == "a.0.depthwise"


def test_json_holds_no_nan():
    broken = replace(FIT, svd=float("nan"), fitted=float("inf"))
    data = conversion_dict(replace(CONVERSION, fits=(broken,)))
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text)["fits"][0]["fitted"] is None
