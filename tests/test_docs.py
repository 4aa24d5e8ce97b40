"""README and docs: every block runs as pasted, every quoted message exists, the site builds.

Languages of the fenced blocks:

- ``python`` and ``console`` (commands of dsconvert) run, each block by itself: in a namespace and a
  folder of its own, with the input files that the block names. No line is changed. The files are
  tiny; fits use 8 latents by default, and the minutes of training pass 2000 times as fast.
- ``sh`` needs something that a test lacks (an installation, hours, a GPU, another repository): the
  options, extras, targets and files that it names exist.
- ``text`` is output or a sketch, ``mermaid`` is written by docs/make_import_graph.py.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from dsconvert.cli import main
from dsconvert.config.reference import reference
from dsconvert.core import polish as polish_stage
from dsconvert.formats.official import new_snapshot, save_snapshot
from tests.adapters.original_code import SAVED
from tests.made_models import moved_generator

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LANGUAGES = {"python", "console", "sh", "text", "mermaid"}
FACTORY = "from torch import nn\n\n\ndef make_generator():\n    return nn.Sequential(\
nn.ConvTranspose2d(16, 32, 4), nn.ReLU(), nn.Conv2d(32, 32, 3))\n"
NEEDS = {  # modules that a block needs beyond the dependencies of the package
    "--data": "timm", "distill": "timm", "--distance": "timm", "feature_distance": "timm",
    "dsconvert.train": "timm", ".onnx": "onnxscript", ".safetensors": "safetensors",
    "--target": "scipy",
}  # fmt: skip
_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SNIPPET = re.compile(r'^--8<-- "(.*)"$', re.MULTILINE)
_WRITTEN = re.compile(r"(--out|--run) $|\b(save\w*|export_model)\(.*$")
_CONVERTS = re.compile(r"^dsconvert (convert )?\S+\.\w+ ", re.MULTILINE)
"""The end of a line's part before a file name that the line writes."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of ``page``."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start()].count("\n") + 1, m[2], m[3]) for m in _BLOCK.finditer(text)
    ]


ALL = [block for page in PAGES for block in blocks(page)]


def of(*languages: str) -> list[Block]:
    return [b for b in ALL if b.language in languages]


def runnable(language: str) -> list[Any]:
    """The blocks of one language; those of README and of the first tutorial run always.

    The others run with the extended tests.
    """
    always = {ROOT / "README.md", DOCS / "tutorials" / "trained-snapshot.md"}
    return [
        pytest.param(b, marks=[] if b.page in always else [pytest.mark.extended], id=str(b))
        for b in of(language)
    ]


@pytest.fixture(scope="session")
def example_files(tmp_path_factory: pytest.TempPathFactory, fastgan_file: Path) -> Path:
    """The input files that the pages name, each of them as small as it can be."""
    folder = tmp_path_factory.mktemp("example_files")
    made = moved_generator(resolution=64, ngf=4)
    save_snapshot(new_snapshot(made), made, folder / "generator.pkl")
    shutil.copy(fastgan_file, folder / "all_1000.pth")
    shutil.copy(SAVED / "cyclegan.pth", folder / "latest_net_G.pth")
    shutil.copy(SAVED / "rosinality.pt", folder / "550000.pt")
    quick = ["--init", "svd", "--calibrate", "0", "--quiet"]
    for source, result in (("generator.pkl", "fast.pkl"), ("all_1000.pth", "fast.pth")):
        assert main([str(folder / source), "--out", str(folder / result), *quick]) == 0
    shutil.copy(folder / "fast.pkl", folder / "better.pkl")
    plan = ["--plan-only", "--polish", "0", "--quiet", "--out", str(folder / "plan.json")]
    assert main([str(folder / "generator.pkl"), *plan]) == 0
    own = FACTORY + next(b.code for b in ALL if "class Conditional(" in b.code)
    (folder / "my_gan.py").write_text(own)
    namespace: dict[str, Any] = {}
    exec(own, namespace)
    torch.save(namespace["make_generator"]().state_dict(), folder / "model.pth")
    torch.save(namespace["Conditional"]().state_dict(), folder / "conditional.pth")
    (folder / "images").mkdir()
    random = torch.Generator().manual_seed(0)
    for i in range(16):
        colours = torch.randint(256, (8, 8, 3), generator=random, dtype=torch.uint8)
        image = Image.fromarray(colours.numpy()).resize((80, 64))
        image.save(folder / "images" / f"{i}.png")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for image_file in sorted((folder / "images").iterdir()):
            archive.write(image_file, image_file.name)
    return folder


def provide(code: str, example_files: Path, folder: Path) -> None:
    """Copy the files that ``code`` names and does not write before into ``folder``."""
    for path in example_files.iterdir():
        name = path.stem if path.suffix == ".py" else path.name
        first = re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", code)
        if first is None or _WRITTEN.search(code[: first.start()].rpartition("\n")[2].strip('"')):
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copy(path, folder / path.name)


def need(code: str) -> None:
    """Skip the test if the block needs a package that is not installed."""
    for word, package in NEEDS.items():
        if word in code and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what runs long by defaults that no line of a page states."""
    patched = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("dsconvert.") and "DEFAULT_LATENTS" in vars(module)
    ]
    for module in patched:
        monkeypatch.setattr(module, "DEFAULT_LATENTS", 8)
    assert patched, "the default number of latents has moved"
    small = functools.partial(polish_stage.DistillConfig, batch=4, held_out=4)
    monkeypatch.setattr(polish_stage, "DistillConfig", small)


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the clock of a distillation or a polish run 2000 times as fast."""
    real, began = time.perf_counter, time.perf_counter()
    monkeypatch.setattr(time, "perf_counter", lambda: began + 2000 * (real() - began))
    yield
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("block", runnable("console"))
def test_console_block_runs(
    block: Block,
    example_files: Path,
    hurried: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    need(block.code)
    provide(block.code, example_files, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_gan", raising=False)
    if "--minutes" in block.code or _CONVERTS.search(block.code):
        request.getfixturevalue("fast_clock")
    for command in block.code.strip().splitlines():
        status = main(words_of(command))
        assert status == 0, f"{block}: {command}\n{capsys.readouterr().err}"
    sys.modules.pop("my_gan", None)


@pytest.mark.slow
@pytest.mark.parametrize("block", runnable("python"))
def test_python_block_runs(
    block: Block,
    example_files: Path,
    hurried: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = _SNIPPET.sub(lambda m: (ROOT / m[1]).read_text(encoding="utf-8"), block.code)
    need(code)
    provide(code, example_files, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_gan", raising=False)
    module = ModuleType("__main__")  # as a script or a prompt runs it
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(code, str(block), "exec", dont_inherit=True), vars(module))
    sys.modules.pop("my_gan", None)


def words_of(line: str) -> list[str]:
    """The arguments of a command of dsconvert."""
    words = shlex.split(line, comments=True)
    assert words[0] == "dsconvert", line
    return words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_has_a_known_language(page: Path) -> None:
    assert {b.language for b in blocks(page)} <= LANGUAGES


@functools.cache
def help_of(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dsconvert", command, "--help"],
        capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_shell_block_names_things_that_exist(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in block.code.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if "dsconvert" in line and words[0] in ("dsconvert", "accelerate", "torchrun"):
            own = words[: words.index("--")] if "--" in words else words
            at = next(i for i, w in enumerate(own) if w.startswith("dsconvert"))
            mine = ["train", *own[at + 1 :]] if own[at] == "dsconvert.train" else own[at + 1 :]
            command = mine[0] if "." not in mine[0] else "convert"
            for option in [w for w in mine if w.startswith("--")]:
                assert re.search(rf"{option}\b", help_of(command)), f"{block}: {option}"
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"{block}: {line}"
        elif words[:2] == ["pip", "install"]:
            for extra in re.findall(r"\[(\w+)\]", line):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"{block}: {line}"
        for path in re.findall(r"(?:tests|benchmarks|examples|docs)/[\w/]+\.py", line):
            assert (ROOT / path).is_file(), f"{block}: {path}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_pages_link_to_files_that_exist() -> None:
    for page in PAGES:
        text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings on the site; GitHub agrees but for the commands' own."""
    text = page.read_text(encoding="utf-8")
    if page.name == "commands.md":  # the site's hook adds one heading a command
        text += reference()
    text = _BLOCK.sub("", text)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_links_into_pages_find_their_headings() -> None:
    for page in PAGES:
        text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", text):
            other = page.parent / target if target else page
            assert anchor in anchors(other), f"{page.name}: {target}#{anchor}"


TERMS = {
    r"MACs?|GMAC": "macs", r"kimg": "kimg", r"ngf": "ngf", r"FD-lite0": "fd-lite0",
    r"ranks?": "rank", r"noise floor": "noise-floor", r"dw -> pw": "dw-pw",
    r"pw -> dw": "pw-dw", r"PSNR": "psnr", r"backbone": "backbone",
    r"held-out error": "held-out-error",
    r"excitation branch(?:es)?": "excitation-branch",
}  # fmt: skip


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name not in ("glossary.md", "CONTRIBUTING.md")], ids=str
)
def test_terms_are_linked_to_the_glossary_at_first_use(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"^#.*$|<!--.*?-->|^--8<--.*$|^.*\|.*\|$", "", text, flags=re.MULTILINE)
    prose = re.sub(r"(?<!\[)`[^`\n]*`|!\[[^\]]*\]", "", text)
    for term, anchor in TERMS.items():
        used = re.search(rf"(?<![\w-])(?:{term})(?![\w-])", prose)
        if used is None:
            continue
        link = re.search(rf"glossary\.md#{anchor}\)", page.read_text(encoding="utf-8"))
        assert link, f"{page.name} uses {used[0]!r} and does not link to glossary.md#{anchor}"


@functools.cache
def messages() -> tuple[str, ...]:
    """All texts in the source code; ``…`` stands for a value that is filled in."""
    found: list[str] = []
    for path in [*(ROOT / "dsconvert").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def quoted() -> list[str]:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_of_the_program(message: str) -> None:
    pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
    pattern = re.compile(".*?".join(pieces), re.DOTALL)
    assert any(pattern.search(each) for each in messages()), message


@pytest.mark.slow
def test_the_import_graph_is_fresh() -> None:
    script = [sys.executable, str(DOCS / "make_import_graph.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    for name in ("material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip('the extra "docs" is not installed')
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    python = (tmp_path / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert 'id="dsconvert.convert"' in python
    commands = (tmp_path / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    assert "--calibrate" in commands
    assert "--resume" in commands
