r"""Train a teacher (a dense FastGAN) for some minutes of a GPU, and go on in the next minutes.

    python examples/train_teacher.py train emoji256.zip --seconds 200 --out out --run runs/teacher
    python examples/train_teacher.py collect out teacher
    python examples/train_teacher.py train emoji256.zip --seconds 200 --out out --run runs/later \
        --start teacher/*.safetensors

``train`` ends by itself within ``--seconds``. Every ``--every`` thousand images it judges the
moving average by FD-lite0 to the pictures, beside the distance of pictures to other pictures (the
floor), and writes what it has as parts of at most 15 MiB (``teacher_files``): ``ema``, ``d`` and
``g`` as safetensors, a sheet of samples, and the curve. With the same ``--run`` it continues the
run exactly. With ``--start`` it continues from files: weights and the curve; the optimisers'
moments begin anew. Without ``g`` the generator starts as the moving average, without ``d`` the
discriminator from random heads.

``collect`` joins the parts. ``python examples/make_demo_snapshot.py OUT.pkl --weights
teacher/ema.safetensors`` writes the moving average as an official file.

The recipe is that of ``dsconvert train``: mirrored images, kept on the device where they fit; CUDA
graphs and TF32 on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from teacher_files import collect, facts_of, load_stored, network_of, write_parts
from torch import Tensor, nn

from dsconvert.data.pictures import grid
from dsconvert.data.stream import to_range
from dsconvert.metrics import LiteFeatures, frechet_distance, sample_images
from dsconvert.model.inputs import sampler_of
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.stats import read_stats
from dsconvert.train import (
    DiscriminatorFacts,
    ImageSet,
    NewGenerator,
    TrainConfig,
    new_discriminator,
    new_generator,
    open_images,
    train,
)
from dsconvert.util.processes import environment, processes

CPU = torch.device("cpu")
SHEET = 24
PARTS = 4
"""At most: a lent machine returns eight files."""
ENDLESS = 1_000_000.0
"""Thousands of images: the clock ends the run."""
JUDGED = ("images", "fd_lite0", "fd_floor", "fd_images")
PACE = ("images", "sec_per_kimg", "peak_memory_bytes")


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What the run starts from."""

    images: int = 0
    seed: int = 0
    visits: tuple[Mapping[str, Any], ...] = ()
    """The curves of earlier visits, see :meth:`Teacher.curve`."""


def earlier_of(run: Path, start: Sequence[Path]) -> Earlier:
    """Return what a run starts from; it is noted in the run's folder when it begins."""
    note = run / "earlier.json"
    if note.is_file():
        kept = json.loads(note.read_text(encoding="utf-8"))
        return Earlier(images=kept["images"], seed=kept["seed"], visits=tuple(kept["visits"]))
    facts = next((facts_of(p) for p in start if network_of(p) == "ema"), {})
    visits = tuple(json.loads(facts.get("visits", "[]")))
    # Another seed: the order of the pictures and all latents would otherwise be those of before.
    found = Earlier(images=int(facts.get("images", 0)), seed=len(visits), visits=visits)
    run.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(vars(found)), encoding="utf-8")
    return found


class Teacher:
    """A training, its clock, and the files that it writes."""

    def __init__(self, options: argparse.Namespace, began: float) -> None:
        self.options = options
        self.stop_at = began + options.seconds - options.reserve
        self.ends_at = began + options.seconds
        self.folder = RunFolder(options.run)
        self.resumed = bool(self.folder.checkpoints())
        self.procs = processes(options.device)
        self.device = self.procs.device
        self.data = open_images(options.data, resolution=options.resolution, limit=options.limit)
        self.earlier = earlier_of(options.run, options.start)
        wanted = NewGenerator(resolution=options.resolution, ngf=options.ngf)
        self.generator = new_generator(wanted, seed=self.earlier.seed)[0]
        self.discriminator = new_discriminator(
            DiscriminatorFacts(resolution=options.resolution, num_discs=options.discs),
            weights=options.backbone,
            seed=self.earlier.seed,
        )
        self.ema: nn.Module = copy.deepcopy(self.generator)
        self._load(options.start)
        self.config = TrainConfig(
            kimg=options.kimg,
            batch=options.batch,
            mirror=True,
            seed=self.earlier.seed,
            # A trained average needs no ramp.
            ema_rampup=None if options.start else 0.05,
            tick_kimg=options.every / 5,
            snapshot_ticks=5,
            evaluate=options.evaluate,
            keep_last=1,
            checkpoint_minutes=600,
            precision=options.precision or ("tf32" if self.device.type == "cuda" else "fp32"),
            cuda_graph=options.cuda_graph,
            grid=SHEET,
        )
        self.final: dict[str, float] = {}
        self.sent = False

    def _load(self, start: Sequence[Path]) -> None:
        """Load the networks of the start files; those of a resumed run are replaced later."""
        files = {network_of(p): p for p in start}
        networks = {"ema": self.ema, "g": self.generator, "d": self.discriminator}
        if files and "ema" not in files:
            raise SystemExit("the start files lack the moving average (ema.safetensors).")
        for name, path in files.items():
            load_stored(networks[name], path)
        if files and "g" not in files:
            self.generator.load_state_dict(self.ema.state_dict())

    # --- the training ---

    def run(self) -> None:
        """Train until the clock says stop, then judge the result with more images."""
        print(
            f"{len(self.data)} pictures, {self.device}, {self.config.precision}; from "
            f"{self.earlier.images} images{', the same run' if self.resumed else ''}",
            flush=True,
        )
        done = train(
            self.generator,
            self.discriminator,
            self.data,
            self.config,
            out=self.folder.path,
            ema=self.ema,
            resume=self.resumed,
            procs=self.procs,
            progress=self._progress,
            report=self._report,
        )
        self.write(done.images)
        if time.time() < self.ends_at:
            self.final = self.judged_by_more()
            self.write(done.images)
        print(f"{self.earlier.images + done.images} images; {json.dumps(self.final)}", flush=True)

    def _progress(self, stage: str, _done: int, _total: int, _detail: str) -> None:
        if stage == "training" and time.time() > self.stop_at and not self.sent:
            self.sent = True
            signal.raise_signal(signal.SIGINT)  # the trainer ends its step, and saves

    def _report(self, row: Mapping[str, Any]) -> None:
        text = f"{(self.earlier.images + row['images']) / 1000:8.2f} kimg"
        if "fd_lite0" in row:
            floor = row.get("fd_floor")
            known = "" if floor is None else f", floor {floor:.2f}"
            print(
                f"{text}  FD-lite0 of {row['fd_images']} {row['fd_lite0']:.1f}{known}", flush=True
            )
            if row["images"]:
                self.write(row["images"])
        else:
            pace, peak = row["sec_per_kimg"], row["peak_memory_bytes"] / 2**30
            print(
                f"{text}  G {row['loss_g']:+.3f}  D {row['loss_d']:.3f}  "
                f"{pace or float('nan'):.2f} s/kimg  {peak:.1f} GiB",
                flush=True,
            )

    def judged_by_more(self) -> dict[str, float]:
        """Return FD-lite0 of many images to all pictures, and to as many others of its own."""
        net, count = LiteFeatures(self.device), self.options.final
        inputs = sampler_of(self.ema)

        def of(seed: int) -> Tensor:
            return net(sample_images(self.ema, inputs, samples=count, seed=seed, batch=50))

        made = of(3)
        pictures = torch.cat([net(to_range(part, CPU)) for part in stacked(self.data).split(200)])
        return {
            "fd_lite0": frechet_distance(made, pictures),
            "samples": count,
            "pictures": len(pictures),
            "floor_own": frechet_distance(made, of(4)),
        }

    # --- the files ---

    def curve(self) -> list[Mapping[str, Any]]:
        """Return the visits so far: conditions, judgements and pace, by images of all visits."""

        def rows(names: Sequence[str], key: str) -> list[dict[str, Any]]:
            return [
                {n: row[n] + self.earlier.images * (n == "images") for n in names if n in row}
                for row in read_stats(self.folder.stats)
                if row.get(key) is not None
            ]

        now = {
            **environment(self.procs),
            "date": time.strftime("%Y-%m-%d"),
            "commit": self.options.commit,
            "data": Path(self.options.data).name,
            "pictures": len(self.data),
            "config": self.config.to_dict(),
            "from_images": self.earlier.images,
            "judged": rows(JUDGED, "fd_lite0"),
            "pace": rows(PACE, "sec_per_kimg"),
            "final": self.final,
        }
        return [*self.earlier.visits, now]

    def write(self, images: int) -> None:
        """Write the networks, a sheet of samples, and the curve, as parts."""
        total, options, visits = self.earlier.images + images, self.options, self.curve()
        samples = sample_images(self.ema, sampler_of(self.ema), samples=SHEET, seed=7)
        sheet = io.BytesIO()
        grid(samples).save(sheet, "PNG")
        judged = visits[-1]["judged"]
        last = f"; FD-lite0 {judged[-1]['fd_lite0']:.1f}" if judged else ""
        if self.final:
            last = "; FD-lite0 {fd_lite0:.1f} (floor {floor_own:.2f})".format(**self.final)
        facts = {
            "cfg": "fastgan",
            "resolution": str(options.resolution),
            "ngf": str(options.ngf),
            "images": str(total),
            "made": f"examples/train_teacher.py: {total} images of {Path(options.data).name} "
            f"({len(self.data)} pictures, mirrored), batch {options.batch}{last}",
            "visits": json.dumps(visits),
        }
        left_out = write_parts(
            options.out,
            "teacher",
            {"ema": self.ema, "d": self.discriminator, "g": self.generator},
            facts,
            {
                "samples.png": sheet.getvalue(),
                "curve.json": (json.dumps({"images": total, "visits": visits}) + "\n").encode(),
            },
            images=total,
            parts=PARTS,
        )
        if left_out:
            print(f"left out, since {PARTS} parts are full: {', '.join(left_out)}", flush=True)


def stacked(data: ImageSet) -> Tensor:
    """Return all pictures, uint8 (N, C, R, R)."""
    if data.decoded is not None:
        return data.decoded
    return torch.stack([data.image(i)[0] for i in range(len(data))])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train for some seconds")
    add = training.add_argument
    add("data", type=Path, help="folder or zip of pictures")
    add("--seconds", type=float, required=True, help="the command ends within them")
    add("--out", type=Path, default=Path("out"), help="folder for the parts")
    add("--run", type=Path, default=Path("runs/teacher"), help="folder of the run, continued")
    add("--start", type=Path, nargs="*", default=[], help="files of an earlier visit")
    add("--device")
    add("--resolution", type=int, default=128)
    add("--ngf", type=int, default=32)
    add("--batch", type=int, default=32)
    add("--discs", type=int, default=4)
    add("--backbone", default="auto")
    add("--precision", help="tf32 on a GPU, fp32 elsewhere")
    add("--cuda-graph", default="auto")
    add("--kimg", type=float, default=ENDLESS, help="length of the run, if the clock allows it")
    add("--every", type=float, default=10.0, help="kimg between judgements, each with new parts")
    add("--evaluate", type=int, default=800, help="images a side of a judgement")
    add("--final", type=int, default=5000, help="images of the last judgement")
    add("--reserve", type=float, default=30.0, help="seconds at the end without training")
    add("--limit", type=int, help="use only the first pictures")
    add("--commit", default="")
    collecting = commands.add_parser("collect", help="join the parts")
    collecting.add_argument("folder", type=Path)
    collecting.add_argument("out", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or join the parts."""
    began, options = time.time(), parse(argv)
    if options.command == "train":
        options.out.mkdir(parents=True, exist_ok=True)
        Teacher(options, began).run()
        return
    curve = collect(options.folder, options.out)
    for visit in curve["visits"]:
        for row in visit["judged"]:
            floor = row.get("fd_floor")
            known = "" if floor is None else f" (floor {floor:.2f})"
            print(f"{row['images'] / 1000:8.2f} kimg  FD-lite0 {row['fd_lite0']:.1f}{known}")
        print(f"{visit['device']}, commit {visit['commit']}: {json.dumps(visit['final'])}")
    files = sorted(p.name for p in options.out.iterdir())
    print(f"{curve['images']} images; {options.out}: {', '.join(files)}")


if __name__ == "__main__":
    main()
