"""The files of a run: who may write into a folder, the state, the log and the picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.training.record import Log, RunState, clear_folder, prepare_folder, read_state, write_state
from tests.training.conftest import logged, tiny

STATE = RunState(
    step=3,
    best=0.5,
    objective={"a": torch.arange(5000.0)},
    average={},
    optimizers=[{"lr": 0.1}],
    scaler={},
    torch_rng=torch.arange(4, dtype=torch.uint8),
)
FILES = {
    "state.pt": "PK old",
    "best.safetensors": '....{"__metadata__": old',
    "last.safetensors": '....{"__metadata__": old',
    "log.csv": "step,loss,lr,seconds,miou",
    "curves.png": "",
}


def test_a_folder_with_a_file_of_a_run_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
        message = rf"{name}: already exists; give resume=True, force=True, or another folder"
        with pytest.raises(ConfigError, match=message):
            prepare_folder(tmp_path, resume=False, force=False)
        prepare_folder(tmp_path, resume=False, force=True)
        assert (tmp_path / name).read_text() == text, "not before the new run can start"
        clear_folder(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    prepare_folder(tmp_path, resume=False, force=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"notes\.txt: expected a folder, got a file"):
        prepare_folder(tmp_path / "notes.txt", resume=False, force=False)
    prepare_folder(tmp_path / "a" / "b", resume=False, force=False)
    assert (tmp_path / "a" / "b").is_dir()


def test_resuming_needs_a_state_and_keeps_the_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: expected the folder of an earlier run.*leave out resume="):
        prepare_folder(tmp_path / "none", resume=True, force=False)
    (tmp_path / "last.safetensors").write_text("weights whose state was deleted")
    with pytest.raises(ConfigError, match=r"state\.pt: expected the state.*give force=True in place of resume="):
        prepare_folder(tmp_path, resume=True, force=False)
    (tmp_path / "state.pt").write_text("state")
    prepare_folder(tmp_path, resume=True, force=False)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_killed_before_its_first_state_starts_again(tmp_path: Path) -> None:
    for files in ([], [".state.pt.1-0"], [".state.pt.1-0", "log.csv"]):
        for name in files:
            (tmp_path / name).touch()
        prepare_folder(tmp_path, resume=True, force=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state(path, tiny(), 2, STATE)
    state = read_state(path, tiny(), 2)
    assert (state.step, state.best, state.optimizers, state.scaler) == (3, 0.5, [{"lr": 0.1}], {})
    assert state.objective["a"].equal(STATE.objective["a"]) and state.torch_rng.equal(STATE.torch_rng)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]


def test_a_state_of_before_resample_and_widths_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state(path, tiny(), 2, STATE)
    content = torch.load(path, weights_only=True)
    recipe = json.loads(content["recipe"])
    del recipe["resample"], recipe["config"]["widths"]
    torch.save({**content, "recipe": json.dumps(recipe)}, path)
    assert read_state(path, tiny(), 2).step == 3
    with pytest.raises(ConfigError, match=r"the run has resample=pillow \(got cv2\)"):
        read_state(path, tiny(resample="cv2"), 2)


def test_states_of_other_runs_name_the_differences(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state(path, tiny(), 2, STATE)
    with pytest.raises(ConfigError, match=r"state\.pt: the run has parts=2 \(got 4\); resume with the same values"):
        read_state(path, tiny(), 4)
    other = tiny(seed=5, lr=0.5, config=replace(tiny().config, hidden=8))
    with pytest.raises(ConfigError) as caught:
        read_state(path, other, 2)
    message = str(caught.value)
    assert "seed=0 (got 5)" in message and "lr=0.0015 (got 0.5)" in message and "'hidden': 8" in message
    assert message.count("(got") == 3, "only what differs"


def _truncated(path: Path) -> None:
    write_state(path, tiny(), 1, STATE)
    path.write_bytes(path.read_bytes()[:9000])


def _code(path: Path) -> None:
    torch.save({"recipe": "{}", "parts": 1, "x": Path("a")}, path)


@pytest.mark.parametrize(
    "write",
    [
        _truncated,
        _code,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no state"),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"recipe": "{", "parts": 1}, path),
        lambda path: torch.save({"recipe": "{}"}, path),  # of the version before there were parts
        lambda path: torch.save({"recipe": "{}", "parts": 1, "step": 3}, path),
    ],
    ids=["truncated", "objects", "empty", "text", "list", "no json", "no parts", "no weights"],
)
def test_damaged_states_are_named(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "state.pt")
    with pytest.raises(
        CheckpointError, match=r"state\.pt: not a readable training state \(.+\); start again with force=True"
    ):
        read_state(tmp_path / "state.pt", tiny(), 1)


def steps(folder: Path) -> list[int]:
    return [int(row["step"]) for row in logged(folder)]


def write_rows(path: Path, steps: range, *, resumed_at: int = 0) -> None:
    with Log(path, resumed_at) as log:
        for step in steps:
            log.write(step, 1 / step, 0.5, 10.0 * step, 0.25 if step % 2 == 0 else None)


def test_log_has_a_row_per_call_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with Log(path, 0) as log:
        log.write(20, 1.23456, 0.00123, 9.6, None)
        log.write(40, 0.5, 1e-5, 21.0, 0.43219)
        rows = ["step,loss,lr,seconds,miou", "20,1.2346,1.23e-03,10,", "40,0.5000,1.00e-05,21,0.4322"]
        assert path.read_text().splitlines() == rows


def test_resumed_log_drops_the_rows_that_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    write_rows(path, range(1, 7))
    with Log(path, 4) as log:
        assert log.seconds == 40.0  # the clock goes on from there
        # Whole before the first new row: a run that is killed now must not lose what the one before it logged.
        assert steps(tmp_path) == [1, 2, 3, 4]
        assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]
    write_rows(path, range(5, 8), resumed_at=4)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    for end in ("5,0.1", "\n"):  # a last row that was not written whole
        write_rows(path, range(1, 5))  # takes nothing from the log that is there
        path.write_text(path.read_text() + end)
        write_rows(path, range(5, 7), resumed_at=4)
        assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def colours(path: Path) -> set[tuple[int, int, int]]:
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.size == (960, 540)
        found = picture.convert("RGB").getcolors(1 << 20)
    return {colour for count, colour in found or [] if count > 50}  # type: ignore[misc]


def test_picture_shows_loss_and_validation(tmp_path: Path) -> None:
    with Log(tmp_path / "log.csv", 0) as log:
        log.write(1, 2.0, 0.1, 1, None)
        log.write(2, 1.0, 0.1, 2, None)
        assert log.draw(tmp_path / "losses.png", "camvid_r18") is None
        log.write(3, 0.9, 0.1, 3, 0.2)
        log.write(4, 0.8, 0.1, 4, 0.6)
        assert log.draw(tmp_path / "both.png", "camvid_r18, seed 0") is None
    grey, blue = (0x8A, 0x8F, 0x98), (0x1F, 0x5F, 0xBF)
    assert {grey, blue} & colours(tmp_path / "losses.png") == {grey}
    assert {grey, blue} <= colours(tmp_path / "both.png")
