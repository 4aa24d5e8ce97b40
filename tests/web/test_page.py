"""The page: its numbers are NumPy's, its facts are the file's, and a browser makes the images."""

from __future__ import annotations

import functools
import http.server
import json
import os
import queue
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dsconvert import ModuleSource, open_file, write_page
from dsconvert.cli import main
from dsconvert.errors import ExportError, ForeignFileError, UsageError
from dsconvert.formats.given_inputs import with_calibration
from dsconvert.formats.official import new_snapshot, save_snapshot
from dsconvert.web import runtime
from dsconvert.web.latents import _normals, inputs_of, page_arguments, range_of
from tests.adapters.originals import settled, written
from tests.made_models import moved_generator
from tests.upscalers import state_file

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "dsconvert" / "web" / "assets"


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = moved_generator(resolution=64, ngf=2, classes=3)
    path = tmp_path_factory.mktemp("classes") / "g.pkl"
    save_snapshot(new_snapshot(made), made, path)
    return path


class Uniform(nn.Module):
    """A generator whose sampler (of --input) is normal, but whose range is none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(4, 5, 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.conv(z[:, :, None, None])


def test_the_inputs_are_those_of_the_official_seeds(classes: Path) -> None:
    file = open_file(classes)
    names = {"z": ("batch", 16), "c": ("batch", 3), "noise": ("batch", 7)}
    inputs = inputs_of(file, names)
    assert [i.kind for i in inputs] == ["latent", "class", "noise"]
    z, c, noise = page_arguments(inputs, 5, label=2)
    wanted = file.draws(2)(5)
    assert torch.equal(z, wanted[0])
    assert torch.equal(c, wanted[1])
    assert noise.shape == (1, 7)
    assert range_of(file) == "signed"


@pytest.mark.parametrize(
    ("name", "case", "saved"),
    [
        ("biggan_pytorch", "BigGAN", "G_ema.pth"),
        ("pretrained_biggan", "BigGAN-deep", "pytorch_model.bin"),
    ],
)
def test_classes_of_biggans_and_their_truncated_latents(
    name: str, case: str, saved: str, tmp_path: Path
) -> None:
    path = written(tmp_path, name, case, saved)
    file = open_file(path)
    z, c = file.draws(1)(0)
    names = dict(zip(("z", "y"), (("batch", *t.shape[1:]) for t in (z, c)), strict=True))
    if name == "pretrained_biggan":
        names = {"z": names["z"], "class_label": names["y"]}
    inputs = inputs_of(file, names)
    assert [i.kind for i in inputs] == ["latent", "class" if "pre" in name else "table"]
    assert inputs[0].reach == (2.0 if "pre" in name else None)
    assert torch.allclose(page_arguments(inputs, 3, label=1)[1], c, atol=1e-6)
    drawn = torch.cat([page_arguments(inputs, seed)[0] for seed in range(200)])
    assert (float(drawn.abs().max()) > 2) == ("pre" not in name)


def test_a_page_is_refused_for_what_it_can_not_show(tmp_path: Path) -> None:
    pictures = open_file(
        state_file(tmp_path / "u.pth"), module=ModuleSource(factory="tests.upscalers:Upscaler"),
        inputs=lambda n, g: (torch.rand(n, 3, 8, 8, generator=g),),
    )  # fmt: skip
    with pytest.raises(UsageError, match="reads pictures"):
        inputs_of(pictures, {"x": ("batch", 3, 8, 8)})
    np.savez(tmp_path / "in.npz", z=np.zeros((4, 4), np.float32))
    given = with_calibration(pictures, tmp_path / "in.npz")
    with pytest.raises(UsageError, match=r"--calibration .*in\.npz: a page draws latents"):
        inputs_of(given, {"x": ("batch", 3, 8, 8)})
    torch.save(Uniform().state_dict(), tmp_path / "five.pth")
    source = ModuleSource(factory="tests.web.test_page:Uniform", shapes=((4,),))
    five = open_file(tmp_path / "five.pth", module=source)
    assert [i.kind for i in inputs_of(five, {"z": ("batch", 4)})] == ["latent"]
    with pytest.raises(ExportError, match="no image of 1, 3 or 4 channels"):
        range_of(five)


@pytest.mark.slow
def test_the_numbers_are_numpys(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    shutil.copy(ASSETS / "numbers.js", tmp_path / "numbers.mjs")
    script = """
    import { RandomState, between } from "./numbers.mjs";
    const out = [0, 7, 4294967295].map((s) => Array.from(new RandomState(s).normals(700)));
    const near = Array.from(new RandomState(7).normals(700, 2.0));
    const half = Array.from(between(Float32Array.from(out[0]), Float32Array.from(out[1]), 0.25));
    console.log(JSON.stringify([out, half, near]));
    """
    done = subprocess.run(
        [node, "--input-type=module", "-e", script],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    made, quarter, near = json.loads(done.stdout)
    wanted = [np.random.RandomState(s).randn(700).astype(np.float32) for s in (0, 7, 2**32 - 1)]
    assert np.allclose(made, wanted, rtol=0, atol=1e-6)
    assert np.allclose(near, _normals(np.random.RandomState(7), 700, 2.0), rtol=0, atol=1e-6)
    assert np.abs(near).max() <= 2
    from dsconvert.model.latent_walk import between

    a, b = (torch.from_numpy(w)[None] for w in wanted[:2])
    assert np.allclose(quarter, between((a,), (b,), 0.25)[0][0], atol=1e-5)


def test_another_runtime_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "dist").mkdir(parents=True)
    for name in runtime.HASHES:
        (package / "dist" / name).write_text("other")
    with pytest.raises(ForeignFileError, match=r"is not onnxruntime-web .* differ"):
        runtime.read_runtime(str(package))
    with tarfile.open(tmp_path / "o.tgz", "w:gz") as archive:
        archive.add(package, "package")
    with pytest.raises(ForeignFileError, match="differ"):
        runtime.read_runtime(str(tmp_path / "o.tgz"))
    for name in runtime.HASHES:  # enough for many blocks of the archive
        (package / "dist" / name).write_bytes(np.random.default_rng(0).bytes(100_000))
    with tarfile.open(tmp_path / "o.tgz", "w:gz") as archive:
        archive.add(package, "package")
    whole = (tmp_path / "o.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    half = len(whole) // 2
    (tmp_path / "damaged.tgz").write_bytes(whole[:half] + bytes(200) + whole[half + 200 :])
    (tmp_path / "empty").touch()
    for name in ("empty", "cut.tgz", "damaged.tgz"):
        with pytest.raises(ForeignFileError, match="npm pack onnxruntime-web@") as caught:
            runtime.read_runtime(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_graph_of_several_files_is_no_page(
    tmp_path: Path, classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    large = SimpleNamespace(files=("model.onnx", "model.onnx.data"), bytes=3_000_000_000)
    monkeypatch.setattr("dsconvert.web.page.export_file", lambda *_, **__: large)
    with pytest.raises(ExportError, match=r"g\.pkl: its weights \(3\.0 GB\) are too many"):
        write_page(open_file(classes), str(tmp_path / "page"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.extended
def test_a_page_without_its_runtime_is_not_written(tmp_path: Path, classes: Path, capsys) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    for bad in (tmp_path / "no.tgz", classes):
        out = tmp_path / "page"
        words = ["export", str(classes), "--out", f"{out}/", "--runtime", str(bad)]
        assert main(words) == 2
        assert "npm pack onnxruntime-web@" in capsys.readouterr().err
        assert not out.exists()


def test_one_version_of_the_runtime_everywhere() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert makefile.count(f"onnxruntime-web@{runtime.VERSION}") == 1
    assert f"onnxruntime-web-{runtime.VERSION}.tgz" in makefile
    page = (ASSETS / "index.html").read_text(encoding="utf-8")
    assert runtime.CDN.split("/npm/")[0] in page  # its content security policy
    assert "http" not in (ASSETS / "page.js").read_text(encoding="utf-8").replace("http.server", "")


# In a browser ---------------------------------------------------------------------------------

WRAPPER = """<!doctype html>
<iframe id="f" src="index.html#seed=2&class=1" width="1000" height="900"></iframe><script>
const frame = document.getElementById("f");
const sum = (d) => {
  const c = d.querySelector("#mixed canvas");
  return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.reduce((a, b) => a + b, 0);
};
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
(async () => {
  for (;;) {
    const d = frame.contentDocument;
    const state = d && d.body && d.body.dataset.state;
    if (state === "ready" || state === "failed") break;
    await wait(100);
  }
  const d = frame.contentDocument;
  const said = { ...d.body.dataset, status: d.getElementById("status").textContent };
  if (said.state === "ready") {
    said.before = sum(d);
    for (let i = 0; i < 6; i += 1) {
      d.getElementById("pad").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
    }
    await wait(2000);
    said.after = sum(d);
    said.hash = frame.contentWindow.location.hash;
    said.canvases = d.querySelectorAll("#samples canvas").length;
  }
  await fetch("/said", { method: "POST", body: JSON.stringify(said) });
})();
</script>"""


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[Path], dict]:
    """Open a folder's page in headless Chromium, and return what the page says of itself."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")

    def run(folder: Path) -> dict:
        said: queue.Queue[dict] = queue.Queue()
        (folder / "wrapper.html").write_text(WRAPPER, encoding="utf-8")

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_POST(self) -> None:
                said.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        serve = functools.partial(Handler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [chromium, "--headless", "--no-sandbox", "--disable-dev-shm-usage"]
        words += [f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0"]
        browser = subprocess.Popen(
            [*words, f"http://127.0.0.1:{server.server_port}/wrapper.html"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return said.get(timeout=240)
        finally:
            browser.terminate()
            browser.wait(timeout=30)
            server.shutdown()
            server.server_close()

    return run


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("kind", ["projected_gan", "biggan_pytorch", "pretrained_biggan"])
def test_a_browser_makes_the_images(
    kind: str, classes: Path, tmp_path: Path, browse: Callable[[Path], dict], capsys
) -> None:
    if kind == "biggan_pytorch":
        classes = written(tmp_path, kind, "BigGAN", "G_ema.pth")
    elif kind == "pretrained_biggan":
        classes = settled(written(tmp_path, kind, "BigGAN-deep", "pytorch_model.bin"))
    package = os.environ.get("ONNXRUNTIME_WEB")
    if not package or not Path(package).exists():
        pytest.skip("ONNXRUNTIME_WEB does not point to npm's onnxruntime-web (npm pack)")
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    out = tmp_path / "page"
    words = ["export", str(classes), "--original", str(classes), "--out", f"{out}/"]
    assert main([*words, "--runtime", package, "--title", "<b>Title</b>"]) == 0
    assert "works offline" in " ".join(capsys.readouterr().out.split())
    said = browse(out)
    assert said["state"] == "ready", said["status"]
    assert [int(n) <= 1 for n in said["differences"].split()] == [True, True]
    assert said["canvases"] == 16
    assert said["before"] != said["after"]
    assert said["hash"] == "#seed=2&x=0.200&y=0.500&class=1"
    # A file of the runtime that differs is not run.
    script = out / "runtime" / "ort.wasm.bundle.min.mjs"
    script.write_bytes(script.read_bytes() + b"\n")
    assert browse(out)["state"] == "failed"
