"""A generator from scratch, or a run that goes on."""

from __future__ import annotations

from argparse import Namespace

from dsconvert.cli.output import Bars
from dsconvert.cli.training import Watcher, changes, config_of, finish
from dsconvert.train.runs import resume, train_new
from dsconvert.train.setup import DiscriminatorFacts, NewGenerator


def run(options: Namespace) -> None:
    """Train, and leave a folder with all that came of it."""
    with Bars(hidden=options.quiet) as bars:
        watch = Watcher(bars, quiet=options.quiet)
        if options.resume:
            done = resume(
                options.resume,
                device=options.device,
                progress=watch.progress,
                report=watch.report,
                **changes(options),
            )
        else:
            done = train_new(
                NewGenerator(
                    cfg=options.cfg,
                    preset=options.preset,
                    rank=options.rank,
                    resolution=options.resolution,
                    ngf=options.ngf,
                    z_dim=options.z_dim,
                    img_channels=options.channels,
                    spectral=options.spectral,
                ),
                config_of(options),
                data=options.data,
                out=options.out,
                name=options.name,
                conditional=options.cond,
                backbone=options.backbone,
                discriminator=DiscriminatorFacts(
                    resolution=options.resolution,
                    num_discs=options.discs,
                    augment=() if options.no_augment else ("color", "translation", "cutout"),
                ),
                device=options.device,
                progress=watch.progress,
                report=watch.report,
            )
    finish(done, options)
