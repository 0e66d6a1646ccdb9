"""What a job finds in folders, globs and Parquet, and what it makes of sources that are wrong or go away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nrd_trt.batch.sources import Chunk, absolute, left_of, list_chunks
from nrd_trt.errors import BatchError, ConfigError

pytest.importorskip("pyarrow", reason="no pyarrow: pip install nrd-trt[batch]")

import pyarrow
import pyarrow.parquet


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def table(target: Path, /, *, rows: int | None = None, **columns: list[Any]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), target, row_group_size=rows)
    return target


def listed(*sources: object, output: str = "/nowhere") -> list[Chunk]:
    return list_chunks([absolute(str(source)) for source in sources], output=Path(output))


def names(chunks: list[Chunk]) -> list[str]:
    return [item.name for chunk in chunks for item in chunk.items]


def read(chunks: list[Chunk]) -> dict[str, bytes | str]:
    return {item.name: content for chunk in chunks for item, content in chunk.contents()}


def test_folders_are_read_with_their_subfolders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "a", "2.png", "sub/1.JPG", "notes.txt", ".hidden/3.png", "_4.png")
    files(tmp_path / "b", "images/5.png", "labels/5.png")
    chunks = listed(tmp_path / "a", tmp_path / "b", tmp_path / "a/2.png")
    assert names(chunks) == ["2", "_4", "sub/1", "5"]
    assert read(chunks)["sub/1"] == b"sub/1.JPG"
    assert [item.path for item in chunks[0].items][:2] == [str(tmp_path / "a/2.png"), str(tmp_path / "a/_4.png")]
    monkeypatch.chdir(tmp_path)
    assert listed("a", "b") == listed(tmp_path / "a", tmp_path / "b")


def test_what_lies_in_the_output_is_no_source(tmp_path: Path) -> None:
    files(tmp_path, "1.png", "masks/1.png")
    assert names(listed(tmp_path, output=str(tmp_path / "masks"))) == ["1"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["1"]),
        ("**/?.png", ["1", "sub/2", "sub/deep/3"]),
        ("sub/?.*", ["2", "4"]),
        ("*/[5].png", ["[5]/[5]"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    files(tmp_path, "1.png", "sub/2.png", "sub/deep/3.png", "sub/4.jpg", "[5]/[5].png")
    assert names(listed(f"{tmp_path}/{pattern}")) == expected


def test_uris_open_other_filesystems(tmp_path: Path) -> None:
    files(tmp_path, "1.png", "sub/2.png")
    (first, second) = listed(f"file://{tmp_path}")[0].items
    assert (first.path, second.name) == (f"file://{tmp_path}/1.png", "sub/2")
    assert names(listed(f"file://{tmp_path}/*.png")) == ["1"]
    with pytest.raises(ConfigError, match="ftp://there/a: cannot be opened"):
        listed("ftp://there/a")


def test_parquet_names_files_or_holds_them(tmp_path: Path) -> None:
    files(tmp_path, "1.png", "else/2.png")
    paths = ["1.png", str(tmp_path / "else/2.png"), f"file://{tmp_path}/absent.png"]
    found = read(listed(table(tmp_path / "paths.parquet", path=paths)))
    assert found["1"] == b"1.png" and found[f"{tmp_path}/else/2"[1:]] == b"else/2.png"
    assert "cannot be read" in str(found[f"{tmp_path}/absent"[1:]])
    three, values = ["a/1.png", "a/2.png", "a/3.png"], [b"one", None, b"three"]
    chunks = listed(table(tmp_path / "held.parquet/part-0.parquet", rows=2, path=three, bytes=values).parent)
    assert [len(chunk.items) for chunk in chunks] == [0, 2, 1]
    assert read(chunks) == {"a/1": b"one", "a/2": "expected the bytes of an image, got none", "a/3": b"three"}
    (left,) = left_of(chunks, {"a/1.png", "a/3.png"}, 8)
    assert read([left]).keys() == {"a/2"}


def test_what_is_left_comes_in_small_chunks(tmp_path: Path) -> None:
    chunks = listed(files(tmp_path, *(f"{index}.png" for index in range(7))))
    left = left_of(chunks, {str(tmp_path / "3.png")}, 4)
    assert [names([chunk]) for chunk in left] == [["0", "1", "2", "4"], ["5", "6"]]


def test_empty_and_wrong_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    files(tmp_path, "a/1.png", "a/1.jpg", "notes.parquet", "b/1.png")
    for source in ("empty", "absent", "a/*.gif", "absent/*.png"):
        with pytest.raises(ConfigError, match=r"expected images.* found none; check the path"):
            listed(tmp_path / source)
    with pytest.raises(ConfigError, match=r"a/1\.jpg and .*a/1\.png: both would be 1\.png in the output"):
        listed(tmp_path / "a")
    assert len(listed(tmp_path / "a", tmp_path / "b", output="x.parquet")[0].items) == 3
    with pytest.raises(ConfigError, match=r"notes\.parquet: cannot be opened"):
        listed(tmp_path / "notes.parquet")
    with pytest.raises(ConfigError, match=r"expected the column 'path'.* got \['file'\]"):
        listed(table(tmp_path / "other.parquet", file=["a"]))
    with pytest.raises(ConfigError, match="expected a text in each row"):
        listed(table(tmp_path / "null.parquet", path=["a", None]))
    with pytest.raises(ConfigError, match=r"without '..'"):
        listed(table(tmp_path / "up.parquet", path=["../../etc/a.png"], bytes=[b"a"]))
    with pytest.raises(ConfigError, match=r"both would be a\.png"):
        listed(table(tmp_path / "twice.parquet", path=["a.png", "a.png"], bytes=[b"a", b"b"]))


def test_a_file_that_vanishes_is_a_failure_and_a_source_that_does_ends_the_job(tmp_path: Path) -> None:
    chunks = listed(files(tmp_path / "a", "1.png", "2.png"))
    (tmp_path / "a/1.png").unlink()
    assert "cannot be read" in str(read(chunks)["1"])
    (tmp_path / "a/2.png").unlink()
    (tmp_path / "a").rmdir()
    with pytest.raises(BatchError, match=r"folder is gone.*resume=True"):
        read(chunks)
    held = table(tmp_path / "held.parquet", path=["1.png", "2.png"], bytes=[b"1", b"2"])
    chunks = listed(held)
    table(held, path=["1.png"], bytes=[b"1"])
    with pytest.raises(BatchError, match="was replaced while it was read"):
        read(chunks[1:])
    held.unlink()
    with pytest.raises(BatchError, match=r"cannot be read.*restore it"):
        read(chunks[1:])


def test_a_file_larger_than_the_budget_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nrd_trt.batch.sources.MOST_BYTES", 3)
    assert "expected at most" in str(read(listed(files(tmp_path, "1.png")))["1"])
