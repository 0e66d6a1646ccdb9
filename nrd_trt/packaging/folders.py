"""The folders that a package consists of: written whole or not at all, replaced only as they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nrd_trt.errors import BundleError, ConfigError
from nrd_trt.files import atomic_folder, check_absent, check_folder, sha256_file, workspace
from nrd_trt.json_files import read_json

MANIFEST = "nrd_package.json"
"""Lists what a folder was written with, so that nothing else is ever replaced."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder to be written.

    Attributes:
        path: Where it shall stand.
        files: Content by path within it, or the file that is copied there; those named ``*.sh`` can be executed.
            Without files the folder that an earlier package has there is removed.
    """

    path: Path
    files: Mapping[str, bytes | Path]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of a package says of itself.

    Attributes:
        package: The name that the package was made for, which is the bundle's.
        files: SHA-256 by path within the folder.
    """

    package: str
    files: dict[str, str]


def check_folders(folders: Sequence[Folder], package: str, *, force: bool) -> None:
    """Raise `ConfigError` where a folder exists, or with `force` where it is not as the tool wrote it for `package`."""
    for folder in folders:
        check_folder(folder.path.parent)
        if folder.path.exists() or folder.path.is_symlink():
            check_absent(folder.path, force=force)
            check_ours(folder.path, package)


def write_folders(output: Path, folders: Sequence[Folder], package: str, *, force: bool) -> list[Path]:
    """Write the folders of a package below `output`, which is made where it is missing.

    Returns:
        Every file, sorted.

    Raises:
        ConfigError: See `check_folders`.
        BundleError: They cannot be written, e.g. the disk is full; nothing is left behind.
    """
    check_folders(folders, package, force=force)
    is_new = not output.exists()
    try:
        output.mkdir(exist_ok=True)
        with ExitStack() as stack:  # all are complete before the first takes its place
            for folder in folders:
                if folder.files:
                    _fill(stack.enter_context(atomic_folder(folder.path, force=force)), folder.files, package)
            check_folders(folders, package, force=force)  # another process may have written there meanwhile
        for folder in folders:
            if not folder.files and folder.path.exists():
                with workspace(folder.path) as grave:
                    folder.path.rename(grave / folder.path.name)
    except OSError as exc:
        raise BundleError(f"{output}: cannot write there ({exc}); free some space or choose another folder.") from exc
    finally:
        if is_new:
            with suppress(OSError):  # it holds something
                output.rmdir()
    return sorted(folder.path / name for folder in folders if folder.files for name in (*folder.files, MANIFEST))


def render(template: str, **values: object) -> bytes:
    """Fill in a file of ``templates/``."""
    return _templates().get_template(template).render(**values).encode()


def _fill(target: Path, files: Mapping[str, bytes | Path], package: str) -> None:
    for name, content in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content)
        path.chmod(0o755 if path.suffix == ".sh" else 0o644)
    manifest = Manifest(package=package, files={name: sha256_file(target / name) for name in sorted(files)})
    (target / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")


def check_ours(path: Path, package: str) -> None:
    """Raise `ConfigError` unless a folder holds nothing but what was written into it for this package."""
    keep = "force=True removes nothing that this tool did not write. Move it, or choose another name"
    try:
        manifest = read_json(path / MANIFEST, Manifest)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"{path}: expected the folder of a package with {MANIFEST}, got none ({exc}); {keep}."
        ) from exc
    if manifest.package != package:
        raise ConfigError(
            f"{path}: expected a folder of the package {package!r}, got one of {manifest.package!r}; {keep}."
        )
    for entry in sorted(path.rglob("*")):
        name = entry.relative_to(path).as_posix()
        if "__pycache__" in entry.parts or name == MANIFEST or (entry.is_dir() and not entry.is_symlink()):
            continue
        if entry.is_symlink() or not entry.is_file() or name not in manifest.files:
            raise ConfigError(f"{path}: expected what was written there alone, got {name!r} as well; {keep}.")
        if sha256_file(entry) != manifest.files[name]:
            raise ConfigError(f"{entry}: expected the file as it was written, got one that was changed since; {keep}.")


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # none of them is HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
