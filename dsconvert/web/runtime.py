"""The browser's runtime: npm's ``onnxruntime-web``, of one version, with the hashes of its files.

A page copies the files (``--runtime``), or refers to a CDN that serves npm packages as they are.
Either way the page checks a file's hash before it runs it.
"""

from __future__ import annotations

import base64
import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsconvert.errors import ForeignFileError
from dsconvert.util.first_line import first_line

VERSION = "1.30.0"
PACKAGE = "onnxruntime-web"
CDN = f"https://cdn.jsdelivr.net/npm/{PACKAGE}@{VERSION}/dist/"
FILES: Mapping[str, Mapping[str, str]] = {
    "wasm": {
        "module": "ort.wasm.bundle.min.mjs",
        "binary": "ort-wasm-simd-threaded.wasm",
    },
    "webgpu": {
        "module": "ort.webgpu.bundle.min.mjs",
        "binary": "ort-wasm-simd-threaded.asyncify.wasm",
    },
}
"""The files of each way to run: a script, and the WebAssembly binary that it loads."""
HASHES: Mapping[str, str] = {
    "ort.wasm.bundle.min.mjs": "PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort.webgpu.bundle.min.mjs": "1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f",
    "ort-wasm-simd-threaded.wasm": (
        "vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"
    ),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        "EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR"
    ),
}
"""SHA-384 of the files of :data:`VERSION`, in base64, as subresource integrity spells them."""
LICENSE = """\
onnxruntime-web {version}: https://github.com/microsoft/onnxruntime

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def described(*, bundled: bool) -> dict[str, Any]:
    """Return the facts by which a page finds and checks the runtime."""
    return {
        "version": VERSION,
        "base": "runtime/" if bundled else CDN,
        "bundled": bundled,
        "ways": {name: dict(files) for name, files in FILES.items()},
        "integrity": {name: f"sha384-{value}" for name, value in HASHES.items()},
    }


def read_runtime(path: str) -> dict[str, bytes]:
    """Return the files of the runtime that a page needs, by name.

    Args:
        path: the ``.tgz`` of ``npm pack``, or an installed or unpacked package's folder.

    Raises:
        ForeignFileError: it is neither, or of another version.
    """
    wanted = (
        f"name what `npm pack {PACKAGE}@{VERSION}` writes, or leave --runtime out (the page then "
        "loads it from a CDN)"
    )
    try:
        found = _from_folder(Path(path)) if Path(path).is_dir() else _from_archive(Path(path))
    except Exception as error:  # a cut-off archive: each decompressor has errors of its own
        reason = first_line(error).rstrip(":- ")
        raise ForeignFileError(
            f"{path} can't be read as the package {PACKAGE} ({reason}); {wanted}."
        ) from None
    other = [
        name
        for name, data in found.items()
        if base64.b64encode(hashlib.sha384(data).digest()).decode() != HASHES[name]
    ]
    if other:
        raise ForeignFileError(
            f"{path} is not {PACKAGE} {VERSION}: {', '.join(other)} differ; {wanted}."
        )
    return found


def _from_folder(folder: Path) -> dict[str, bytes]:
    roots = (folder, folder / "dist", folder / "package" / "dist")
    root = next((r for r in roots if (r / FILES["wasm"]["module"]).is_file()), roots[1])
    return {name: (root / name).read_bytes() for name in HASHES}


def _from_archive(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found: dict[str, bytes] = {}
        for name in HASHES:
            member = archive.extractfile(f"package/dist/{name}")
            if member is None:
                raise KeyError(f"package/dist/{name} is no file")
            found[name] = member.read()
        return found
