"""Writes a model's directory next to its target and moves it there in one step: complete and durable, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from enum import Enum
from io import FileIO
from pathlib import Path

from graphwd.errors import StepError
from graphwd.progress import progress

_FICLONE = 0x40049409  # linux/fs.h: shares the extents of one file with another, copying nothing
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100
_CHUNK = 16 * 2**20


class Files(Enum):
    """How unchanged files get into a new model, where they cannot be shared by reflink."""

    COPY = "copy"
    LINK = "link"  # hard links; where that fails, copies


def refuse_existing(target: Path, source: Path | None, *, overwrite: bool) -> None:
    """Refuses a place that cannot be written.

    Args:
        target: the directory to write.
        source: the directory that is read, if any.
        overwrite: whether the target may exist.

    Raises:
        StepError: the target exists or is, contains or lies in the source.
    """
    there = _exists(target)
    place = Path(os.path.realpath(target))
    if source is not None:
        read = Path(os.path.realpath(source))
        if place == read or (place.exists() and place.samefile(read)):
            raise StepError(f"{target}: is the model itself, which is never modified; name another --output")
        if read in place.parents:
            raise StepError(f"{target}: lies in the model that is read; name another --output")
        if place in read.parents:
            raise StepError(f"{target}: contains the model that is read; name another --output")
    if there and not overwrite:
        raise StepError(f"{target}: exists already; name another --output, or write --overwrite")
    if there and (target.is_symlink() or not target.is_dir()):
        raise StepError(f"{target}: is no directory; only a directory can be overwritten")
    if there and any(target.iterdir()) and not any(map(_is_model, target.iterdir())):
        raise StepError(f"{target}: holds no model, and only a model is overwritten; name another --output")


def _is_model(path: Path) -> bool:
    return path.name in ("saved_model.pb", "saved_model.pbtxt") or path.suffix == ".meta"


def _exists(target: Path) -> bool:
    """Whether the name of the target exists, even as a dangling link."""
    try:
        target.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:  # its name is too long, or its parent is no directory
        raise StepError(f"{target}: cannot be written: {error.strerror}") from None
    return True


@contextlib.contextmanager
def new_directory(target: Path, *, overwrite: bool = False) -> Generator[Path]:
    """A directory to fill, which replaces the target when the block ends without an error.

    Args:
        target: its final path.
        overwrite: whether it replaces an existing directory.

    Yields:
        A new directory beside the target. When the block ends it is flushed to the disk, then renamed; an existing
        target is exchanged with it and then removed.

    Raises:
        StepError: it cannot be written; then nothing is left of it.
    """
    folder: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".graphwd.", dir=target.parent)
        yield Path(folder)
        os.chmod(folder, 0o777 & ~_umask())
        _flush(Path(folder))
        if overwrite and target.is_dir():
            _exchange(Path(folder), target)
        else:
            os.rename(folder, target)  # fails if the target exists by now and is not empty
        _flush_one(target.parent)
    except OSError as error:
        raise StepError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def fill(
    folder: Path,
    source: Path,
    changed: Mapping[str, bytes],
    files: Files,
    *,
    keep: Callable[[str], bool],
) -> None:
    """Fills a new directory with a copy of a model in which a few files are changed.

    Args:
        folder: the new directory, empty.
        source: the model.
        changed: the content of changed and new files, by their path in the model.
        files: how all other files get there.
        keep: whether an unchanged file is kept, by its path in the model.

    Raises:
        StepError: a file of the model cannot be read, or is no file.
        OSError: a file cannot be written.
    """
    kept = [path for path in _files(source) if path not in changed and keep(path)]
    total = sum((source / path).stat().st_size for path in kept)
    with progress("copying", total) as advance:
        for path in kept:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            _transfer(source / path, folder / path, files, advance)
    for path in filter(keep, _folders(source)):
        (folder / path).mkdir(parents=True, exist_ok=True)
    for path, content in changed.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def check_files(source: Path, keep: Callable[[str], bool] = lambda _: True) -> None:
    """Refuses a model that `fill` would refuse.

    Args:
        source: the model.
        keep: whether a file belongs to it, by its path in the model.

    Raises:
        StepError: a file of the model cannot be read, or is no file.
    """
    for path in filter(keep, _files(source)):
        if not os.access(source / path, os.R_OK):
            raise StepError(f"{source / path}: cannot be read: {os.strerror(errno.EACCES)}")


def _files(source: Path) -> Iterator[str]:
    for base, _, names in _walk(source):
        for name in sorted(names):
            path = Path(base, name)
            try:
                mode = path.stat().st_mode
            except OSError as error:
                raise StepError(f"{path}: cannot be read: {error.strerror}") from None
            if not stat.S_ISREG(mode):
                raise StepError(f"{path}: is no file; a model holds only files and folders")
            yield str(path.relative_to(source))


def _folders(source: Path) -> Iterator[str]:
    for base, folders, _ in _walk(source):
        yield from (str(Path(base, name).relative_to(source)) for name in folders)


def _walk(source: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Like `os.walk`, but in a fixed order, through links, and without cycles."""
    for base, folders, names in os.walk(source, followlinks=True, onerror=_cannot_read):
        folders.sort()
        here = Path(os.path.realpath(base))
        for name in folders:
            target = Path(os.path.realpath(Path(base, name)))
            if target == here or target in here.parents:
                raise StepError(f"{Path(base, name)}: links to a folder that holds it")
        yield base, folders, names


def _cannot_read(error: OSError) -> None:
    raise StepError(f"{error.filename}: cannot be read: {error.strerror}")


def _transfer(source: Path, target: Path, files: Files, advance: Callable[[int], None]) -> None:
    if files is Files.LINK:
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(os.path.realpath(source), target)
            advance(target.stat().st_size)
            return
    try:
        reader = source.open("rb", buffering=0)
    except OSError as error:
        raise StepError(f"{source}: cannot be read: {error.strerror}") from None
    with reader, target.open("wb", buffering=0) as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            advance(os.fstat(reader.fileno()).st_size)
        except OSError:  # a file system that cannot share extents
            _copy(reader, writer, source, advance)
    shutil.copymode(source, target)


def _copy(reader: FileIO, writer: FileIO, source: Path, advance: Callable[[int], None]) -> None:
    """Copies a file inside the kernel as far as possible, and the rest through memory."""
    with contextlib.suppress(OSError):  # an error that persists also occurs in the copy below
        while count := os.copy_file_range(reader.fileno(), writer.fileno(), _CHUNK):
            advance(count)
    while chunk := _read(reader, source):
        left = memoryview(chunk)
        while left:
            left = left[writer.write(left) :]
        advance(len(chunk))


def _read(reader: FileIO, source: Path) -> bytes:
    try:
        return reader.read(_CHUNK)
    except OSError as error:
        raise StepError(f"{source}: cannot be read: {error.strerror}") from None


def _flush(folder: Path) -> None:
    """Makes sure that everything in a directory is on the disk."""
    for base, _, names in os.walk(folder):
        for name in names:
            _flush_one(Path(base, name))
        _flush_one(Path(base))


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot flush a directory
            raise
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Exchanges two directories atomically."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the file system cannot exchange directories ({os.strerror(number)})")


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
