"""Every job by the name of its command, and the settings of ``official-train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsconvert.config.base import Job
from dsconvert.config.choices import Weights
from dsconvert.config.convert import ConvertJob, Rewriting
from dsconvert.config.distill import DistillJob
from dsconvert.config.export import ExportJob
from dsconvert.config.files import CompareJob, InspectJob, ReportJob
from dsconvert.config.generate import GenerateJob
from dsconvert.config.measure import BenchJob, EvalJob
from dsconvert.config.setting import part, setting
from dsconvert.config.train import BACKBONE_HELP, FinetuneJob, TrainJob
from dsconvert.config.values import seed
from dsconvert.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class OfficialTrainJob(Job):
    """Start the official train.py, unmodified, with a converted generator.

    This runs the train.py of a checkout of autonomousvision/projected-gan. That is its code, and
    the snapshots that it resumes from are unpickled by it: give it files that you trust.
    """

    repo: str = setting(help="the checkout; not edited", metavar="PATH", completes="dir")
    rewriting: Rewriting = part(only=("preset", "rank"), preset="paper")
    plan: str | None = setting(
        None, help="an edited plan instead of a preset", metavar="FILE", completes="file"
    )
    backbone: Weights = setting("auto", help=BACKBONE_HELP)
    seed: int = setting(0, help="of the random weights", read=seed)
    official: tuple[str, ...] = setting(
        (),
        help="train.py's own; --resume fast.pkl takes architecture and weights from that file",
        metavar="-- ARGUMENTS",
        positional=True,
        repeat=True,
    )

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options that contradict each other."""
        official = typed.get("official", ())
        if not official:
            raise UsageError("give train.py's own arguments behind --, for example: -- --help")
        chosen = [o for o in ("--preset", "--rank") if o in typed]
        if "--plan" in typed and chosen:
            raise UsageError(
                "--plan already holds every rank and choice; drop --preset and --rank."
            )
        if ("--plan" in typed or chosen) and any(w.split("=")[0] == "--resume" for w in official):
            raise UsageError(
                "--resume takes the architecture from its file; drop --preset, --rank and --plan."
            )


JOBS: dict[str, type[Job]] = {
    "convert": ConvertJob,
    "inspect": InspectJob,
    "report": ReportJob,
    "generate": GenerateJob,
    "compare": CompareJob,
    "train": TrainJob,
    "finetune": FinetuneJob,
    "bench": BenchJob,
    "distill": DistillJob,
    "export": ExportJob,
    "eval": EvalJob,
    "official-train": OfficialTrainJob,
}
"""Settings by command, in the order of the help."""
