r"""Make a snapshot as users have it, with a checkout of the official code: 1.7 GB by default.

Random weights, the official classes, the full discriminator, written by ``pickle``:

    python benchmarks/make_official_file.py --repo ~/projected-gan --timm ~/timm-0.4.12 \
        --out official.pkl

``--timm`` is a folder with the timm 0.4.12 that the official discriminator needs
(``pip install --no-deps --target DIR timm==0.4.12``); leave it out where that is installed.
The backbone gets random weights, so that nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import functools
import pickle
import sys
import time
from pathlib import Path


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repo", type=Path, required=True, help="checkout of projected-gan")
    parser.add_argument("--timm", type=Path, help="folder that holds timm 0.4.12")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ngf", type=int, default=128)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--classes", type=int, default=0)
    parser.add_argument("--lite", action="store_true")
    parser.add_argument("--forwards", type=int, default=2, help="training-mode passes that settle "
                        "spectral norm and the statistics")  # fmt: skip
    args = parser.parse_args()
    sys.path[:0] = [str(p) for p in (args.timm, args.repo) if p is not None]

    import timm
    import torch
    from pg_modules.discriminator import ProjectedDiscriminator
    from pg_modules.networks_fastgan import Generator

    make = timm.create_model

    @functools.wraps(make)
    def without_download(name, pretrained=False, **kwargs):  # noqa: ARG001
        return make(name, pretrained=False, **kwargs)

    timm.create_model = without_download
    started = time.perf_counter()
    torch.manual_seed(0)
    cond = args.classes > 0
    g = Generator(
        c_dim=args.classes,
        img_resolution=args.resolution,
        ngf=args.ngf,
        cond=cond,
        synthesis_kwargs={"lite": args.lite},
    )
    g.train().requires_grad_(False)
    with torch.no_grad():
        for _ in range(args.forwards):
            c = torch.zeros(2, args.classes)
            if cond:
                c[:, 0] = 1
            g(torch.randn(2, g.z_dim), c)
    backbone = {
        "cout": 64,
        "expand": True,
        "proj_type": 2,
        "num_discs": 4,
        "separable": False,
        "cond": cond,
    }
    d = ProjectedDiscriminator(diffaug=True, interp224=True, backbone_kwargs=backbone)
    d.train().requires_grad_(False)
    data = {
        "G": g,
        "D": d,
        "G_ema": copy.deepcopy(g).eval(),
        "training_set_kwargs": {
            "class_name": "training.dataset.ImageFolderDataset",
            "path": "./data/example.zip",
            "use_labels": cond,
            "max_size": None,
            "xflip": True,
            "resolution": args.resolution,
        },
        "progress": {"cur_nimg": torch.LongTensor([0]), "best_fid": 9999},
    }
    with args.out.open("wb") as out:
        pickle.dump(data, out)
    size = args.out.stat().st_size
    print(f"{args.out}: {size / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
