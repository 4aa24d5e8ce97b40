"""The profile on disk: measured once, measured again where it contradicts itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dsconvert.bench import Settings, settle
from dsconvert.search.consistency import TRIES
from dsconvert.search.profile import Profile
from dsconvert.util.cache import cache_folder

SETTINGS = settle(Settings(device="cpu", threads=1))


class Answers:
    """A measurement that answers from a list, the last one for ever, and counts."""

    def __init__(self, *answers: float | list[float]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> list[float]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return answer if isinstance(answer, list) else [answer] * 3


def saved(folder: Path, **times: float) -> Path:
    profile = Profile(SETTINGS, folder=folder)
    for key, value in times.items():
        profile.get(key, Answers(value))
    profile.save()
    return profile.path


def test_a_time_is_measured_once(tmp_path: Path) -> None:
    measure = Answers(0.5)
    first = Profile(SETTINGS, folder=tmp_path)
    assert [first.get("a", measure).value, first.get("a", measure).value] == [0.5, 0.5]
    first.save()
    second = Profile(SETTINGS, folder=tmp_path)
    assert second.get("a", measure).value == 0.5
    assert measure.asked == 1
    assert second.measured == 0
    assert second.notes == []
    Profile(SETTINGS, folder=tmp_path, remeasure=True).get("a", measure)
    assert measure.asked == 2


def test_runs_that_differ_widely_are_measured_again_and_the_middle_counts(tmp_path: Path) -> None:
    measure = Answers([1.0, 5.0, 9.0], 2.0, 2.1)
    profile = Profile(SETTINGS, folder=tmp_path)
    assert profile.get("a", measure).value == 2.1
    assert measure.asked == TRIES
    assert profile.unsettled == 0


def test_what_never_settles_is_measured_a_bounded_number_of_times(tmp_path: Path) -> None:
    measure = Answers([1.0, 5.0, 9.0])
    profile = Profile(SETTINGS, folder=tmp_path)
    for _ in range(5):
        profile.get("a", measure)
        profile.again("a", measure)
    assert measure.asked == TRIES
    assert profile.unsettled == 1
    profile.save()
    # A later run does not start afresh.
    Profile(SETTINGS, folder=tmp_path).again("a", measure)
    assert measure.asked == TRIES


def test_an_earlier_run_that_disagrees_with_now_is_not_used(tmp_path: Path) -> None:
    saved(tmp_path, large=1.0, other=1.0)
    profile = Profile(SETTINGS, folder=tmp_path)
    profile.check("large", Answers(0.3))
    assert profile.get("large", Answers(9.0)).value == 0.3
    assert profile.get("other", Answers(0.4)).value == 0.4
    assert "a factor of 3.3" in profile.notes[0]
    profile.save()
    assert Profile(SETTINGS, folder=tmp_path).get("other", Answers(9.0)).value == 0.4


@pytest.mark.parametrize(
    "now",
    [
        Answers(1.1),  # within what two runs differ by
        Answers([0.2, 0.5, 1.2]),  # within the spread
        Answers(5.0, 1.0),  # a third measurement takes the side of the earlier run
    ],
)
def test_an_earlier_run_that_agrees_is_used(tmp_path: Path, now: Answers) -> None:
    saved(tmp_path, large=1.0, other=1.0)
    profile = Profile(SETTINGS, folder=tmp_path)
    profile.check("large", now)
    assert profile.get("large", Answers(9.0)).value == 1.0
    assert profile.get("other", Answers(9.0)).value == 1.0
    assert profile.notes == []


def test_what_was_measured_now_is_not_checked(tmp_path: Path) -> None:
    profile = Profile(SETTINGS, folder=tmp_path)
    profile.get("a", Answers(1.0))
    never = Answers(9.0)
    profile.check("a", never)
    profile.check("unknown", never)
    assert never.asked == 0


def test_profiles_of_other_settings_are_other_files(tmp_path: Path) -> None:
    one = Profile(SETTINGS, folder=tmp_path)
    two = Profile(settle(Settings(device="cpu", threads=2)), folder=tmp_path)
    three = Profile(settle(Settings(device="cpu", threads=1, dtype="amp")), folder=tmp_path)
    assert len({p.path for p in (one, two, three)}) == 3


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("torch", "1.0"),
        ("machine", "another CPU"),
        ("threads", 64),
        ("cores", 4096),
        ("format", 1),
        ("allocator", {"MALLOC_MMAP_MAX_": "7"}),
    ],
)
def test_the_profile_of_another_machine_is_not_used(
    tmp_path: Path, fact: str, value: object
) -> None:
    path = saved(tmp_path, a=1.0)
    data = json.loads(path.read_text())
    assert fact in data["header"]
    data["header"][fact] = value
    path.write_text(json.dumps(data))
    profile = Profile(SETTINGS, folder=tmp_path)
    assert profile.get("a", Answers(2.0)).value == 2.0
    assert "is of another machine or version" in profile.notes[0]


def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    one, two = (Profile(SETTINGS, folder=tmp_path) for _ in range(2))
    one.get("a", Answers(1.0))
    two.get("b", Answers(2.0))
    one.save()
    two.save()
    third = Profile(SETTINGS, folder=tmp_path)
    assert third.get("a", Answers(9.0)).value == 1.0
    assert third.get("b", Answers(9.0)).value == 2.0
    assert [p.name for p in tmp_path.iterdir()] == [third.path.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b'{"header": {}, "times": 3, "settled": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_profile_is_measured_again_with_a_note(tmp_path: Path, content: bytes) -> None:
    Profile(SETTINGS, folder=tmp_path).path.write_bytes(content)
    profile = Profile(SETTINGS, folder=tmp_path)
    assert profile.get("a", Answers(3.0)).value == 3.0
    (note,) = profile.notes
    assert "is damaged; its times are measured again" in note
    assert str(profile.path) in note
    profile.save()
    healed = Profile(SETTINGS, folder=tmp_path)
    assert healed.get("a", Answers(9.0)).value == 3.0
    assert healed.notes == []


SPOILED: dict[str, Callable[[list], object]] = {
    "NaN": lambda _: [float("nan")] * 3,
    "negative": lambda _: [-1, -1, -1],
    "zero": lambda _: [0, 0, 0],
    "infinite": lambda v: [*v[:2], float("inf")],
    "huge": lambda _: [10**400] * 3,
    "text": lambda _: "x",
    "null": lambda _: None,
    "quartiles that cross": lambda v: [v[0], 2 * v[0], 3 * v[0]],
    "one figure": lambda v: v[0],
    "four figures": lambda v: [*v, 1],
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_damaged_time_is_measured_again_with_a_note(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, a=1.0, b=2.0)
    data = json.loads(path.read_text())
    data["times"]["a"] = SPOILED[kind](data["times"]["a"])
    path.write_text(json.dumps(data))
    profile = Profile(SETTINGS, folder=tmp_path)
    assert profile.get("a", Answers(4.0)).value == 4.0
    assert profile.get("b", Answers(4.0)).value == 2.0
    assert "is damaged in part" in profile.notes[0]


def test_a_profile_that_is_a_folder_costs_time_alone(tmp_path: Path) -> None:
    Profile(SETTINGS, folder=tmp_path).path.mkdir()
    profile = Profile(SETTINGS, folder=tmp_path)
    assert profile.get("a", Answers(1.0)).value == 1.0
    assert "can't be read" in profile.notes[0]
    profile.save()


def test_no_place_to_write_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    profile = Profile(SETTINGS, folder=tmp_path / "file" / "below")
    profile.get("a", Answers(1.0))
    profile.save()


def test_the_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DSCONVERT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dsconvert"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "dsconvert"
    monkeypatch.setenv("DSCONVERT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
