"""Recognise files that are no official snapshot, and say for each what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconvert.errors import CorruptSnapshotError, ForeignFileError, UnsupportedSnapshotError
from dsconvert.formats.official.persistence import persistent
from dsconvert.safepickle import Walk

if TYPE_CHECKING:
    from dsconvert.safepickle import Pickle, Source

_NAMED: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip archive. Unpack it first (gunzip)."),
    (b"BZh", "a bzip2 archive. Unpack it first (bunzip2)."),
    (b"\xfd7zXZ\x00", "an xz archive. Unpack it first (unxz)."),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive. Unpack it first."),
    (b"Rar!", "a rar archive. Unpack it first."),
    (b"\x89PNG", "a PNG picture. Name a snapshot, for example network-snapshot.pkl."),
    (b"\xff\xd8\xff", "a JPEG picture. Name a snapshot, for example network-snapshot.pkl."),
    (b"\x89HDF", "an HDF5 file. dsconvert reads the pickles of the official training code."),
    (b"\x93NUMPY", "a NumPy array. dsconvert reads the pickles of the official training code."),
    (b"GGUF", "a GGUF file. dsconvert reads the pickles of the official training code."),
    (b"%PDF", "a PDF document. Name a snapshot, for example network-snapshot.pkl."),
)
_HEAD = 4096
_TENSORFLOW = ("dnnlib.tflib.network", "Network")
_RELATIVES: tuple[tuple[set[str], str], ...] = (
    ({"TriPlaneGenerator", "DualDiscriminator"}, "EG3D"),
)
"""Persistent classes that only other generators of the family have."""


def check_first_bytes(source: Source) -> None:
    """Check that the file begins like a pickle.

    Raises:
        ForeignFileError: it is something else; the message names it and the remedy.
        CorruptSnapshotError: it is a pickle so short that it can only be truncated.
        UnsupportedSnapshotError: it is a state dict or checkpoint of plain torch.
    """
    head = source.read_at(0, _HEAD)
    path = source.path
    if not head:
        raise ForeignFileError(f"{path} is empty. Copy or download it again.")
    if not head.strip(b"\x00"):
        raise ForeignFileError(f"{path} begins with zeros only. Copy or download it again.")
    for magic, what in _NAMED:
        if head.startswith(magic):
            raise ForeignFileError(f"{path} is {what}")
    if head.startswith(b"PK\x03\x04"):
        if b"data.pkl" in head or b"/version" in head:
            raise UnsupportedSnapshotError(
                f"{path} is a checkpoint of torch.save (a zip), not a snapshot of the official "
                "training code. Name the network-snapshot.pkl or best_model.pkl that it wrote."
            )
        raise ForeignFileError(f"{path} is a zip archive. Unpack it and name the .pkl inside.")
    if head.startswith(b"version https://git-lfs"):
        raise ForeignFileError(
            f"{path} is a git-lfs pointer, not the file itself. Run: git lfs pull"
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise ForeignFileError(
            f"{path} is a web page (HTML): the download was answered with a page. Open the link "
            "in a browser, or download it again with the right address."
        )
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < source.size:
        raise ForeignFileError(
            f"{path} is a safetensors file, which holds weights without their architecture. "
            "Name the .pkl of the official training code."
        )
    if head[:1] == b"\x80":
        if len(head) < 2:
            raise CorruptSnapshotError(f"{path} is one byte long. Copy or download it again.")
        if head[1] > 5:
            raise ForeignFileError(
                f"{path} is no pickle that is known: protocol {head[1]} does not exist. "
                "Copy or download it again."
            )
        if head[:13] == b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P":
            raise UnsupportedSnapshotError(
                f"{path} is a checkpoint of torch.save (the old format), not a snapshot of the "
                "official training code. Name the network-snapshot.pkl that it wrote."
            )
        return
    if _is_text(head):
        # A pickle of protocol 0 is text too, but begins like none and ends in a full stop.
        tail = source.read_at(max(0, source.size - 1), 1)
        if tail == b"." and head[:1] in b"(cdilpS]}V" and b"\n" in head:
            return
        raise ForeignFileError(f"{path} is a text file. Name a snapshot (.pkl).")
    if head[:1] in b"(]})cNKJMXU":
        return
    raise ForeignFileError(
        f"{path} is no pickle: its first byte is {head[:1]!r}. Name a snapshot (.pkl)."
    )


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\t\r\n\f" for c in text)


def check_relatives(parsed: Pickle, generator: str) -> None:
    """Check that a pickle is no snapshot of related code.

    Args:
        parsed: the file.
        generator: the entry that holds its main generator.

    Raises:
        UnsupportedSnapshotError: TensorFlow, EG3D.
    """
    path = parsed.source.path
    named = {g.key for g in parsed.machine.globals}
    if _TENSORFLOW in named:
        raise UnsupportedSnapshotError(
            f"{path} is a TensorFlow pickle of StyleGAN or StyleGAN2. Convert it with "
            "legacy.py of NVlabs/stylegan2-ada-pytorch or NVlabs/stylegan3 first; dsconvert reads "
            "what that writes."
        )
    entry = next((v for k, v in parsed.entries if k == generator), None)
    if entry is None or persistent(entry) is None:
        return
    walk = Walk(parsed.source)
    walk.add([(generator, entry)])
    classes = {p.class_name for n in walk.nodes if (p := persistent(n)) is not None}
    for telling, name in _RELATIVES:
        if telling & classes:
            raise UnsupportedSnapshotError(
                f"{path} holds a generator of {name}, which dsconvert does not convert: "
                "it renders a volume. Of this family dsconvert converts StyleGAN2 (cfg=stylegan2 "
                "of Projected GAN, StyleGAN2-ADA-PyTorch and StyleGAN3), StyleGAN3 and StyleGAN-XL."
            )
