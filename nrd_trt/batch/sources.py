"""What a job reads: folders, globs, files and Parquet, on any filesystem that pyarrow opens; it is imported on use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from nrd_trt.data.folders import IMAGE_SUFFIXES
from nrd_trt.errors import BatchError, ConfigError
from nrd_trt.optional import require

MOST_BYTES = 256 << 20
"""Of one image file; a larger one is recorded as a failure."""
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file.

    Attributes:
        root: Absolute path or URI that opens its filesystem, with the options that the user gave.
        file: Its path in that filesystem.
    """

    root: str
    file: str

    @property
    def name(self) -> str:
        """What results call it: an absolute path or a URI without options."""
        scheme = _URI.match(self.root)
        return f"{scheme[0] if scheme else ''}{self.file}"

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open the file for reading, as pyarrow's ``NativeFile``."""
        with _opened(self.root)[0].open_input_file(self.file) as file:
            yield file

    def vanished(self, exc: Exception) -> BatchError | None:
        """Return what to raise where the folder of a file that cannot be read is gone as well; else None."""
        folder = str(PurePosixPath(self.file).parent)
        try:
            there = _opened(self.root)[0].get_file_info(folder).type == _fs().FileType.Directory
        except OSError:
            there = False
        if there:
            return None
        return BatchError(
            f"{self.name}: cannot be read ({exc}), and its folder is gone or does not answer; bring the source back "
            "and go on with resume=True. Nothing that was written is lost."
        )


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image of a source.

    Attributes:
        path: What results call it: an absolute path, a URI, or the text of a Parquet row with bytes.
        name: Path of its mask in a tree, without the suffix.
        place: The image's file, or the Parquet file that holds its bytes.
        row: Row in the row group that holds its bytes.
    """

    path: str
    name: str
    place: Place
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Images that a worker reads one after the other: files, or the bytes in one row group of a Parquet file."""

    items: tuple[Item, ...]
    row_group: int | None = None

    def contents(self) -> Iterator[tuple[Item, bytes | str]]:
        """Yield each image with its bytes, or with the reason why there are none.

        Raises:
            BatchError: The folder that held them is gone or does not answer.
        """
        if self.row_group is None:
            yield from ((item, _read(item.place)) for item in self.items)
            return
        wanted, row = {item.row: item for item in self.items}, 0
        place = self.items[0].place
        try:
            with place.open() as file:
                parts = _pq().ParquetFile(file).iter_batches(16, row_groups=[self.row_group], columns=["bytes"])
                for value in (value for part in parts for value in part.column(0)):
                    if row in wanted:
                        yield wanted[row], value.as_py() or "expected the bytes of an image, got none"
                    row += 1
        except (OSError, ValueError) as exc:  # pyarrow's own are of these
            raise place.vanished(exc) or BatchError(f"{place.name}: cannot be read ({exc}); restore it.") from exc
        if row <= self.items[-1].row:
            raise BatchError(f"{place.name}: was replaced while it was read; restore it, or begin anew.")


def list_chunks(sources: Sequence[str], *, output: Path) -> list[Chunk]:
    """List the images of all sources: first all that are files, then those in Parquet, a chunk for each row group.

    Args:
        sources: Folders (with their subfolders; of one that has ``images/`` that), image files, globs (``*``, ``**``
            and, of local paths, ``?``), and Parquet files, or folders of them, with a column ``path`` (string) and,
            where the images are in them, ``bytes`` (binary). Each is an absolute path or a URI.
        output: Where masks go; what lies in it is no source. In a tree no two images may have one name.

    Raises:
        ConfigError: A source cannot be opened or holds no image, a Parquet file has other columns, or two images have
            one path or would write one mask.
    """
    found: list[Chunk] = []
    for source in sources:
        try:
            chunks = list(_listed(source, output))
        except ConfigError:
            raise
        except (OSError, ValueError, NotImplementedError) as exc:  # what pyarrow raises is of these
            raise ConfigError(f"{source}: cannot be opened ({exc}); check the name and the access to it.") from exc
        if not any(chunk.items for chunk in chunks):
            kinds = ", ".join((*IMAGE_SUFFIXES, ".parquet"))
            raise ConfigError(f"{source}: expected images ({kinds}), found none; check the path.")
        found += chunks
    files = {item.path: item for chunk in found if chunk.row_group is None for item in chunk.items}
    chunks = [Chunk(items=tuple(files.values())), *(chunk for chunk in found if chunk.row_group is not None)]
    seen: dict[str, str] = {}
    for item in (item for chunk in chunks for item in chunk.items):
        key = f"{item.name}.png" if is_tree(output) else item.path
        if key in seen:
            raise ConfigError(f"{seen[key]} and {item.path}: both would be {key} in the output; rename one.")
        seen[key] = item.path
    return chunks


def absolute(source: str | Path) -> str:
    """Return a source as it is recorded: a path absolute, a URI as it is."""
    return str(source) if _URI.match(str(source)) else str(Path(source).absolute())


def is_tree(output: Path) -> bool:
    """Whether masks go into a tree of PNG files, not into Parquet."""
    return output.suffix != ".parquet"


def left_of(chunks: Sequence[Chunk], done: Set[str], size: int) -> list[Chunk]:
    """Return what is not `done`: files in chunks of `size`, row groups whole, because one is read through anyway."""
    left = []
    for chunk in chunks:
        items = tuple(item for item in chunk.items if item.path not in done)
        step = size if chunk.row_group is None else len(items)
        left += [replace(chunk, items=items[first : first + step]) for first in range(0, len(items), step or 1)]
    return left


def _listed(source: str, output: Path) -> Iterator[Chunk]:
    """Yield the images of one source."""
    root, pattern = _split(source)
    filesystem, base = _opened(root)
    info, kind = filesystem.get_file_info(base), _fs().FileType
    if info.type == kind.File and pattern is None:
        files, base = [base], str(PurePosixPath(base).parent)
    elif info.type == kind.Directory:
        if pattern is None and filesystem.get_file_info(f"{base}/images").type == kind.Directory:
            base = f"{base}/images"
        entries = filesystem.get_file_info(_fs().FileSelector(base, recursive=True))
        files = sorted(entry.path for entry in entries if entry.type == kind.File)
        files = [file for file in files if _is_wanted(PurePosixPath(file).relative_to(base), pattern)]
    else:
        raise ConfigError(f"{source}: expected images, a folder of them or Parquet, found none; check the path.")
    if not _URI.match(root):
        files = [file for file in files if not Path(file).is_relative_to(output)]
    images = [file for file in files if not file.endswith(".parquet")]
    places = [(Place(root=root, file=file), str(PurePosixPath(file).relative_to(base))) for file in images]
    yield Chunk(items=tuple(Item(path=place.name, name=_mask_name(name), place=place) for place, name in places))
    for file in files:
        if file.endswith(".parquet"):
            yield from _rows(Place(root=root, file=file))


def _is_wanted(path: PurePosixPath, pattern: re.Pattern[str] | None) -> bool:
    """Whether a file of a folder is an image or a Parquet part, and not hidden."""
    hidden = any(part.startswith(".") for part in path.parts) or (path.suffix == ".parquet" and path.name[0] == "_")
    known = path.suffix.lower() in IMAGE_SUFFIXES or path.suffix == ".parquet"
    return known and not hidden and (pattern is None or pattern.fullmatch(str(path)) is not None)


def _rows(place: Place) -> Iterator[Chunk]:
    """Yield the images that a Parquet file names or holds."""
    with place.open() as file:
        table = _pq().ParquetFile(file)
        columns = table.schema_arrow.names
        if "path" not in columns:
            raise ConfigError(f"{place.name}: expected the column 'path', and 'bytes', got {columns}; rename yours.")
        for group in range(table.num_row_groups):
            paths = table.read_row_group(group, columns=["path"]).column(0).to_pylist()
            if not all(isinstance(path, str) and path for path in paths):
                raise ConfigError(f"{place.name}: expected a text in each row of 'path'; leave the other rows out.")
            held = "bytes" in columns
            items = (
                _row_item(place, path, row) if held else _named_item(place, path) for row, path in enumerate(paths)
            )
            yield Chunk(items=tuple(items), row_group=group if held else None)


def _row_item(place: Place, path: str, row: int) -> Item:
    return Item(path=path, name=_mask_name(path), place=place, row=row)


def _named_item(table: Place, path: str) -> Item:
    """Return the image that a row names: by a URI, or by a path in the table's filesystem or from its folder on."""
    if _URI.match(path):
        place = Place(root=path, file=_opened(path)[1])
    else:
        place = Place(root=table.root, file=str(PurePosixPath(table.file).parent / path))
    return Item(path=place.name, name=_mask_name(path), place=place)


def _mask_name(path: str) -> str:
    """Return the path of a mask in a tree, without the suffix; it never leaves the tree."""
    plain = PurePosixPath("/") / _URI.sub("", path, count=1)
    if ".." in plain.parts or "\0" in path or not plain.name:
        raise ConfigError(f"path {path!r}: expected the name of a file, without '..'; give another.")
    return str(plain.with_suffix("").relative_to("/"))


def _split(source: str) -> tuple[str, re.Pattern[str] | None]:
    """Return the part before any wildcard, absolute, and what paths below it must match; None takes all."""
    is_uri = _URI.match(source) is not None
    place, mark, options = source.partition("?") if is_uri else (source, "", "")
    wildcard = re.search(r"\*" if is_uri else r"[*?]", place)
    if wildcard is None or (not is_uri and Path(place).exists()):
        return source, None
    fixed = place[: wildcard.start()].rpartition("/")[0]
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", place[len(fixed) + 1 :])
    pattern = "".join(_WILDCARDS.get(part, re.escape(part)) for part in parts)
    return f"{fixed or '/'}{mark}{options}", re.compile(pattern, re.DOTALL)


def _read(place: Place) -> bytes | str:
    """Return the bytes of a file, or the reason why there are none."""
    try:
        with place.open() as file:
            if file.size() > MOST_BYTES:
                return f"expected at most {MOST_BYTES >> 20} MiB, got {file.size() >> 20} MiB"
            return bytes(file.read())
    except OSError as exc:
        if vanished := place.vanished(exc):
            raise vanished from exc
        return f"cannot be read ({exc})"


@lru_cache(maxsize=64)
def _opened(root: str) -> tuple[Any, str]:
    """Return a filesystem and the path of `root` in it; to open one in the cloud takes requests."""
    filesystem, path = _fs().FileSystem.from_uri(root) if _URI.match(root) else (_fs().LocalFileSystem(), root)
    return filesystem, path


def _fs() -> Any:
    return require("pyarrow.fs", extra="batch", purpose="reading the images of a job")


def _pq() -> Any:
    return require("pyarrow.parquet", extra="batch", purpose="reading and writing Parquet")
