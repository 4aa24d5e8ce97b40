"""Tables and JSON: every fact of the records is there, names are shown and never obeyed."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from dsconvert.records import Conversion, Cost, Decision, Fit, LayerCost, Plan
from dsconvert.report.jsonable import conversion_dict, cost_dict, plan_dict
from dsconvert.report.tables import conversion_table, cost_table, plan_table, snapshot_table
from dsconvert.report.text import amount, percent, ratio
from dsconvert.snapshot import SnapshotInfo, inspect_snapshot


def shown(table: Table, *, width: int = 260) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def row(text: str, first: str) -> list[str]:
    """The cells of the line whose first cell is ``first``."""
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("│┃ ").split("│")]
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


def test_other_numbers():
    assert amount(49_744_760_832, "MAC") == "49.7 GMAC"
    assert [percent(v) for v in (None, 0.0, 0.0101, 0.816, 1.0, 11.07, 1e-9)] == [
        "-", "0.00 %", "1.01 %", "81.6 %", "100 %", "1107 %", "<0.001 %",
    ]  # fmt: skip
    assert [ratio(*v) for v in ((10, 4), (10, None), (None, 4), (10, 0))] == ["2.50x", *"---"]


def test_conversion_table():
    text = shown(conversion_table(CONVERSION))
    assert row(text, "a.0") == [
        "a.0", "dw-pw, rank 2", "36.9 K > 5.12 K", "2.36 G > 81.9 M",
        "81.6 %", "13.2 %", "1.01 %", "it is cheap there",
    ]  # fmt: skip
    assert row(text, "b[red]")[1:4] == ["keep", "64", "64"]
    assert row(text, "c")[1:4] == ["remove", "72 > 0", "0"]
    total = row(text, "whole model")
    assert total[2:4] == ["37.0 K > 5.18 K", "2.40 G > 100 M"]
    assert total[-1] == "7.14x fewer parameters, 24.00x fewer MACs"
    assert "fitted on 5 latents" in text
    assert "not counted by fvcore: mul x5, sub x1" in text
    assert "never runs: c" in text
    assert "c.x" not in text


def test_a_conversion_without_macs_says_why():
    unknown = Cost(params=3, macs=None, layers=(), note="no MACs: because")
    decisions = tuple(replace(d, macs_before=None, macs_after=None) for d in DECISIONS)
    without = replace(
        CONVERSION, before=unknown, after=unknown, plan=replace(PLAN, decisions=decisions)
    )
    text = shown(conversion_table(without))
    assert text.count("no MACs: because") == 1
    assert row(text, "a.0")[3] == "-"
    assert row(text, "whole model")[3] == "-"
    assert conversion_dict(without)["before"]["note"] == "no MACs: because"


def test_plan_table():
    text = shown(plan_table(PLAN))
    assert row(text, "a.0")[1] == "dw-pw, rank 2"
    assert row(text, "a.0")[4:] == ["", "", "", "it is cheap there"]
    assert row(text, "these convolutions")[2:4] == ["37.0 K > 5.18 K", "2.36 G > 81.9 M"]
    assert "a note; removed, since they never run: c" in text
    unknown = replace(PLAN, decisions=(replace(DECISIONS[0], macs_before=None),))
    assert row(shown(plan_table(unknown)), "these convolutions")[3] == "- > 81.9 M"


def test_cost_tables():
    alone = shown(cost_table(BEFORE, title="T"))
    assert row(alone, "a.0") == ["a.0", "Conv2d", "36.9 K", "2.36 G"]
    assert row(alone, "whole model")[2:] == ["37.0 K", "2.40 G"]
    assert "Sequential" not in alone
    assert "times fewer" not in alone
    both = shown(cost_table(BEFORE, AFTER))
    assert row(both, "a.0") == [
        "a.0", "Conv2d > Sequential", "36.9 K > 5.12 K", "2.36 G > 81.9 M",
    ]  # fmt: skip
    assert row(both, "b[red]") == ["b[red]", "Conv2d", "64", "64"]
    assert row(both, "c")[2] == "72 > 0"
    assert row(both, "new")[2:] == ["0 > 30", "0 > 30"]
    assert "depthwise" not in both
    assert row(both, "times fewer")[2:] == ["7.14x", "24.00x"]


def test_lines_of_a_cost_add_up_to_the_whole():
    """On a real count: leaves with parameters are all parameters, once each."""
    from dsconvert.report.counts import count

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    cost = count(model, (torch.randn(1, 3, 8, 8),))
    text = shown(cost_table(cost))
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
    for table in (
        plan_table(plan),
        conversion_table(conversion),
        cost_table(cost),
        cost_table(cost, cost, title=EVIL),
        snapshot_table(info),
    ):
        text = shown(table)
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
        assert r"x\x1b[2J\x07[bold]y\u202e" in text


def test_snapshot_table(snapshot_file: Path):
    text = shown(snapshot_table(inspect_snapshot(snapshot_file)))
    assert snapshot_file.name in text.splitlines()[0]
    assert row(text, "adapter") == ["adapter", "projected_gan"]
    assert row(text, "config.ngf") == ["config.ngf", "4"]
    assert row(text, "safe") == ["safe", "True"]
    assert "key G_ema" in text


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
    }
    assert data["notes"] == ["fitted on 5 latents"]
    assert data["seconds"] == {"fit": 1.5}
    cost = json.loads(json.dumps(cost_dict(AFTER)))
    assert cost["layers"][2]["name"] == "a.0.depthwise"


def test_json_holds_no_nan():
    broken = replace(FIT, svd=float("nan"), fitted=float("inf"))
    data = conversion_dict(replace(CONVERSION, fits=(broken,)))
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text)["fits"][0]["fitted"] is None
