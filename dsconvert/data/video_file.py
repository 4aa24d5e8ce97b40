"""Write images as a video, through the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsconvert.errors import MissingExtraError, OutputError
from dsconvert.util.extras import pip_install
from dsconvert.util.files import whole_file

_CODECS = {
    ".mp4": ("mp4", "libx264", ("-crf", "16", "-preset", "medium", "-movflags", "+faststart")),
    ".webm": ("webm", "libvpx-vp9", ("-crf", "20", "-b:v", "0", "-row-mt", "1")),
}
"""Suffix to the container, the encoder, and its options for a quality without visible loss."""


def check_video() -> None:
    """Check that videos can be written.

    Raises:
        MissingExtraError: imageio-ffmpeg is not installed, or brings no ffmpeg for this system.
    """
    try:
        module: Any = import_module("imageio_ffmpeg")
        module.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            f"a video needs imageio-ffmpeg and its ffmpeg ({error}): {pip_install('video')}."
        ) from None


def write_video(
    path: str | os.PathLike[str], frames: Iterable[Image.Image], *, fps: int, overwrite: bool
) -> None:
    """Write RGB frames of one size, whole or not at all; an odd side is repeated by one pixel.

    Args:
        path: ends in ``.mp4`` (H.264) or ``.webm`` (VP9).
        frames: at least one.
        fps: frames a second.
        overwrite: whether ``path`` may exist.

    Raises:
        OutputError: see :func:`dsconvert.util.files.whole_file`, or ffmpeg refuses.
    """
    container, codec, options = _CODECS[Path(path).suffix.lower()]
    write: Any = import_module("imageio_ffmpeg").write_frames
    with whole_file(path, overwrite=overwrite) as beside:
        sink: Any = None
        try:
            for frame in frames:
                pixels = _even(np.asarray(frame.convert("RGB")))
                if sink is None:
                    height, width = pixels.shape[:2]
                    sink = write(
                        str(beside),
                        (width, height),
                        fps=fps,
                        codec=codec,
                        quality=None,
                        macro_block_size=2,
                        ffmpeg_log_level="error",
                        # The part has a suffix of its own, so the container is named.
                        output_params=[*options, "-f", container],
                    )
                    sink.send(None)
                sink.send(np.ascontiguousarray(pixels))
        except OSError as error:
            reason = str(error).strip().splitlines() or ["it has ended"]
            raise OutputError(f"can't write {path}: ffmpeg: {reason[-1]}.") from error
        finally:
            if sink is not None:
                sink.close()
        if not beside.stat().st_size:
            raise OutputError(f"can't write {path}: ffmpeg wrote nothing; name another format.")


def _even(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the picture with even sides: the encoders halve the resolution of the colours."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
