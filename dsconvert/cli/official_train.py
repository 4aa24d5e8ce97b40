"""``official-train``: the official trainer with a converted generator."""

from __future__ import annotations

from dsconvert.cli.files import read_plan
from dsconvert.cli.parser import Call
from dsconvert.config.jobs import OfficialTrainJob
from dsconvert.official_trainer import ConversionSettings, train
from dsconvert.official_trainer.launch import check_repo, resumed


def run(call: Call) -> None:
    """Start the trainer, which prints its own messages."""
    options: OfficialTrainJob = call.options
    repo = check_repo(options.repo)
    plan = read_plan(options.plan) if options.plan else None
    settings = ConversionSettings(
        repo=str(repo),
        preset=options.rewriting.preset,
        rank=options.rewriting.rank,
        plan=plan.to_json() if plan else None,
        resume=resumed(options.official),
        seed=options.seed,
        backbone=options.backbone,
    )
    train(settings, options.official)
