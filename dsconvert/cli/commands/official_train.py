"""The official trainer with a converted generator."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from dsconvert.errors import PlanError
from dsconvert.official_trainer import ConversionSettings, train
from dsconvert.official_trainer.launch import check_repo, resumed
from dsconvert.records import Plan


def run(options: Namespace) -> None:
    """Start it; what it prints is its own."""
    repo = check_repo(options.repo)
    text = None
    if options.plan:
        try:
            text = Path(options.plan).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"can't read the plan {options.plan}: {error}.") from None
        Plan.from_json(text)
    settings = ConversionSettings(
        repo=str(repo),
        preset=options.preset,
        rank=options.rank,
        plan=text,
        resume=resumed(options.official),
        seed=options.seed,
        backbone=options.backbone,
    )
    train(settings, options.official)
