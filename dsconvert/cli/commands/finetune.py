"""Go on training a file's generator."""

from __future__ import annotations

from argparse import Namespace

from dsconvert.cli.output import Bars
from dsconvert.cli.training import Watcher, config_of, finish
from dsconvert.train.runs import finetune
from dsconvert.train.setup import DiscriminatorFacts


def run(options: Namespace) -> None:
    """Train, and leave a folder with all that came of it."""
    with Bars(hidden=options.quiet) as bars:
        watch = Watcher(bars, quiet=options.quiet)
        done = finetune(
            options.snapshot,
            # The average starts from a trained one: official training that resumes has no ramp-up.
            config_of(options, ema_rampup=None),
            data=options.data,
            out=options.out,
            name=options.name,
            new_heads=options.new_discriminator,
            backbone=options.backbone,
            discriminator=DiscriminatorFacts(
                resolution=0,  # the file's
                num_discs=options.discs,
                augment=() if options.no_augment else ("color", "translation", "cutout"),
            ),
            device=options.device,
            progress=watch.progress,
            report=watch.report,
        )
    finish(done, options)
