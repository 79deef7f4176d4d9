"""Files of a model: what is read, carried along, linked, refused, exchanged; what is left after an error."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphwd.cli.main import main
from graphwd.errors import StepError
from graphwd.models.files import Files, fill, new_directory, refuse_existing
from graphwd.models.saved_model import describe_saved_model, rewrite_saved_model, strip
from tests.helpers.lockstep import policy_for
from tests.helpers.saved_models import save_plain, snapshot

POLICY = policy_for({"kernel": 0.01})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_plain(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model(saved, tmp_path):
    """A model of its own for a test that puts more files into it."""
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", str(saved), str(folder)], check=True)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {name: stat.content for name, stat in snapshot(folder).items()}


def check_refused(model: Path, target: Path, message: str, **options: bool) -> None:
    """Checks that a rewrite fails with one message, changes nothing and leaves nothing behind."""
    before, beside = snapshot(model), contents(model.parent)
    with pytest.raises(StepError, match=message) as caught:
        rewrite_saved_model(model, target, POLICY, **options)
    assert "\n" not in str(caught.value)
    assert snapshot(model) == before
    assert contents(model.parent) == beside


# What is carried along


def test_every_other_file_is_carried_along(model, tmp_path):
    for name in ("keras_metadata.pb", "assets.extra/notes.txt", "debug/saved_model_debug_info.pb", "a b/\xe4/c.bin"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(name.encode() * 1000)
    (model / os.fsdecode(b"\xff\xfe")).write_text("not UTF-8")
    (model / ".hidden").write_text("")
    (model / "empty").mkdir()
    (model / "assets.extra" / "notes.txt").chmod(0o640)
    before = snapshot(model)
    for link in (False, True):
        target = tmp_path / f"out {link}"
        rewrite_saved_model(model, target, POLICY, link=link)
        after = snapshot(target)
        assert after.keys() == before.keys()
        for name in after.keys() - {"saved_model.pb", "fingerprint.pb"}:
            assert after[name][:2] == before[name][:2], name
        assert snapshot(model) == before
    strip(tmp_path / "out True", tmp_path / "back")
    left_out = {"fingerprint.pb"}  # it has a new UUID
    assert {n: c for n, c in contents(tmp_path / "back").items() if n not in left_out} == {
        n: s.content for n, s in before.items() if n not in left_out
    }


def test_a_model_without_a_fingerprint_gets_none(model, tmp_path):
    (model / "fingerprint.pb").unlink()
    rewrite_saved_model(model, tmp_path / "out", POLICY)
    assert not (tmp_path / "out" / "fingerprint.pb").exists()


def test_relative_symlinks_are_followed(model, tmp_path):
    (model / "variables").rename(tmp_path / "elsewhere")
    (model / "variables").symlink_to("../elsewhere")
    (model / "assets" / "again.txt").symlink_to("vocabulary.txt")
    (model / "saved_model.pb").rename(tmp_path / "graph")
    (model / "saved_model.pb").symlink_to("../graph")
    before = snapshot(tmp_path)
    for link in (False, True):
        target = tmp_path / "deep" / "er" / f"out {link}"
        rewrite_saved_model(model, target, POLICY, link=link)
        assert not any(path.is_symlink() for path in target.rglob("*"))
        assert contents(target / "variables")["variables.index"] == contents(tmp_path / "elsewhere")["variables.index"]
        assert (target / "assets" / "again.txt").read_text() == "one\ntwo\n"
        assert len(describe_saved_model(target)) == 4
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before if name != "."} == {n: s for n, s in before.items() if n != "."}


def test_the_mode_of_the_new_folder_is_that_of_any_other(model, tmp_path):
    old = os.umask(0o027)
    try:
        rewrite_saved_model(model, tmp_path / "out", POLICY)
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_hard_links(model, tmp_path):
    data = "variables/variables.data-00000-of-00001"
    rewrite_saved_model(model, tmp_path / "copy", POLICY)
    rewrite_saved_model(model, tmp_path / "link", POLICY, link=True)
    assert not os.path.samefile(model / data, tmp_path / "copy" / data)
    for name in (data, "assets/vocabulary.txt", "variables/variables.index"):
        assert os.path.samefile(model / name, tmp_path / "link" / name)
    for name in ("saved_model.pb", "fingerprint.pb"):
        assert not os.path.samefile(model / name, tmp_path / "link" / name)


def test_links_where_there_can_be_none_are_copies(model, tmp_path, monkeypatch):
    def cross_device(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", cross_device)
    rewrite_saved_model(model, tmp_path / "out", POLICY, link=True)
    assert contents(tmp_path / "out" / "variables") == contents(model / "variables")


@pytest.mark.parametrize("done", [0, 7])
def test_a_file_system_that_copies_nothing_or_a_part(model, tmp_path, monkeypatch, done):
    copy = os.copy_file_range

    def partly(source: int, target: int, count: int) -> int:
        if os.lseek(source, 0, os.SEEK_CUR) >= done:
            raise OSError(18, "Invalid cross-device link")
        return copy(source, target, min(count, done))

    monkeypatch.setattr(os, "copy_file_range", partly)
    monkeypatch.setattr("graphwd.models.files._CHUNK", 10)
    rewrite_saved_model(model, tmp_path / "out", POLICY)
    for name in ("variables", "assets"):
        assert contents(tmp_path / "out" / name) == contents(model / name)


# What is refused


def test_an_existing_target_is_refused(model, tmp_path):
    for name, make in {
        "full": lambda path: (path.mkdir(), (path / "x").write_text("mine")),
        "empty": lambda path: path.mkdir(),
        "file": lambda path: path.write_text("mine"),
        "dangling": lambda path: path.symlink_to("nowhere"),
    }.items():
        make(tmp_path / name)
        check_refused(model, tmp_path / name, "exists already; name another --output, or write --overwrite")


def test_only_a_folder_is_overwritten(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "dangling").symlink_to("nowhere")
    check_refused(model, tmp_path / "file", "is no directory; only a directory can be overwritten", overwrite=True)
    check_refused(model, tmp_path / "link", "is the model itself, which is never modified", overwrite=True)
    check_refused(model, tmp_path / "dangling", "is no directory", overwrite=True)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("variables", "variables.data-00000-of-00001"),
        ("variables/variables.index", "variables.index"),
        ("variables/variables.data-00000-of-00001", "variables.data-00000-of-00001"),
    ],
)
def test_a_model_without_all_of_its_weights(model, tmp_path, lost, named):
    (model / lost).rename(tmp_path / "elsewhere")
    message = rf"variables/{named}: no such file; the model's weights are not all there"
    check_refused(model, tmp_path / "out", message)
    if lost != "variables":
        (model / "variables" / "variables.data-00001-of-00002").write_bytes(b"")
        check_refused(model, tmp_path / "out", "the model's weights are not all there")


@pytest.mark.parametrize("overwrite", [False, True])
def test_source_and_target_must_lie_apart(model, tmp_path, overwrite):
    (tmp_path / "alias").symlink_to(tmp_path)
    for target, message in {
        model: "is the model itself",
        model / "variables" / "..": "is the model itself",
        model / "out": "lies in the model that is read",
        model / "variables" / "deep" / "out": "lies in the model that is read",
        tmp_path / "alias" / "model" / "out": "lies in the model that is read",
        tmp_path: "contains the model that is read",
        tmp_path / "alias": "contains the model that is read",
        tmp_path.parent: "contains the model that is read",
    }.items():
        check_refused(model, target, message, overwrite=overwrite)


def test_targets_that_cannot_be(model, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "round").symlink_to("round")
    check_refused(model, tmp_path / "file" / "out", "cannot be written: Not a directory")
    check_refused(model, tmp_path / "round" / "out", "cannot be written: ")
    check_refused(model, tmp_path / ("x" * 300), "cannot be written: File name too long")
    check_refused(model, tmp_path / ("x" * 300) / "out", "cannot be written: File name too long")
    check_refused(model, Path("/proc/nowhere/out"), "cannot be written: ")


def test_a_long_name_that_can_be(model, tmp_path):
    rewrite_saved_model(model, tmp_path / ("x" * 255), POLICY)
    assert contents(tmp_path / ("x" * 255)).keys() == contents(model).keys()


def test_a_name_that_is_not_utf_8(model, tmp_path, capsys):
    target = tmp_path / os.fsdecode(b"out\xff")
    rewrite_saved_model(model, target, POLICY)
    assert (target / "fingerprint.pb").exists()
    (tmp_path / "policy.yaml").write_text("version: 1\nrules: [{weight_decay: 0.1}]")
    assert main(["plan", str(target)]) == 0
    assert "rewritten by graphwd" in capsys.readouterr().out


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def make_dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("saved_model.pb", make_folder, "saved_model.pb: cannot be read: it is no file"),
        ("saved_model.pb", make_fifo, "saved_model.pb: cannot be read: it is no file"),
        ("saved_model.pb", make_dangling, "holds no saved_model.pb"),
        ("variables/variables.index", make_fifo, "variables.index: is no file"),
        ("variables/variables.index", make_dangling, "variables.index: cannot be read: No such file"),
        ("assets/loop", lambda path: path.symlink_to("."), "assets/loop: links to a folder that holds it"),
        ("loop", lambda path: path.symlink_to("."), "loop: links to a folder that holds it"),
        ("loop", lambda path: path.symlink_to(".."), "loop: links to a folder that holds it"),
        ("loop", lambda path: path.symlink_to("loop"), "loop: cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_source_that_cannot_be_read(model, tmp_path, name, make, message, link):
    make(model / name)
    check_refused(model, tmp_path / "out", message, link=link)


def test_two_loops_of_links_take_no_time(model, tmp_path):
    (model / "a").symlink_to(".")
    (model / "b").symlink_to(".")
    check_refused(model, tmp_path / "out", "links to a folder that holds it")


def test_a_file_that_fails_while_it_is_read(model, tmp_path):
    # As root every mode is readable; the memory of a process at address 0 is not.
    (model / "assets" / "memory").symlink_to("/proc/self/mem")
    with pytest.raises(StepError, match="assets/memory: cannot be read: Input/output error"):
        rewrite_saved_model(model, tmp_path / "out", POLICY)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# What is exchanged


def test_overwriting_replaces_all(model, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.meta").write_text("")
    rewrite_saved_model(model, target, POLICY, overwrite=True)
    assert contents(target).keys() == contents(model).keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_at_no_moment_is_there_neither_or_half(tmp_path):
    """A writer exchanges a folder again and again; a reader always finds all of one version."""
    target = tmp_path / "out"
    stop = threading.Event()

    def write(version: int) -> None:
        with new_directory(target, overwrite=True) as folder:
            for i in range(5):
                (folder / f"{i}").write_text(f"{version}")

    write(0)
    seen: set[str] = set()
    failures: list[str] = []

    def look() -> None:
        while not stop.is_set():
            try:
                handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                failures.append(str(error))
                continue
            with contextlib.suppress(FileNotFoundError):  # an old version that is being removed
                texts = {Path(f"/proc/self/fd/{handle}/{i}").read_text() for i in range(5)}
                seen.update(texts)
                if len(texts) != 1:
                    failures.append(f"{texts}")
            os.close(handle)

    reader = threading.Thread(target=look)
    reader.start()
    for version in range(1, 100):
        write(version)
    stop.set()
    reader.join()
    assert failures == []
    assert len(seen) > 3


def test_a_file_system_that_cannot_exchange(model, tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(22, "the file system cannot exchange directories")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.meta").write_text("mine")
    monkeypatch.setattr("graphwd.models.files._exchange", cannot)
    check_refused(model, tmp_path / "out", "cannot be written: the file system cannot exchange", overwrite=True)


def test_a_target_that_comes_to_exist_meanwhile_is_kept(tmp_path):
    with (  # noqa: PT012
        pytest.raises(StepError, match="cannot be written: Directory not empty"),
        new_directory(tmp_path / "out") as folder,
    ):
        (folder / "new").write_text("")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.meta").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.meta"]


# What is left after an error


@contextlib.contextmanager
def tiny(folder: Path, size: str) -> Iterator[None]:
    """A file system of a few kilobytes, which Linux lets only root mount.

    CI is root, and there a mount that fails is a failure. What anybody may do is no full disk: a limit on the size of
    files makes another error (EFBIG), and a mount in a namespace of its own is not seen by this process.
    """
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode and os.geteuid():
        pytest.skip(f"a full disk is a small tmpfs, which only root may mount; run this as root: {done.stderr.strip()}")
    assert not done.returncode, done.stderr
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk(model, tmp_path, overwrite, link):
    (model / "assets" / "large").write_bytes(os.urandom(200_000))
    before = snapshot(model)
    with tiny(tmp_path / "disk", "64k"):
        target = tmp_path / "disk" / "out"
        if overwrite:
            target.mkdir()
            (target / "mine.meta").write_text("mine")
        there = contents(tmp_path / "disk")
        with pytest.raises(StepError, match="out: cannot be written: No space left on device") as caught:
            rewrite_saved_model(model, target, POLICY, overwrite=overwrite, link=link)
        assert "\n" not in str(caught.value)
        assert contents(tmp_path / "disk") == there
    assert snapshot(model) == before


@pytest.mark.parametrize("size", ["4k", "8k", "16k", "24k", "32k", "48k"])
def test_a_disk_that_is_full_at_any_file(model, tmp_path, size):
    with tiny(tmp_path / "disk", size):
        with pytest.raises(StepError, match="No space left on device"):
            rewrite_saved_model(model, tmp_path / "disk" / "out", POLICY)
        assert list((tmp_path / "disk").iterdir()) == []


def test_any_error_leaves_nothing_behind(tmp_path):
    for error in (ValueError("mine"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)), new_directory(tmp_path / "out") as folder:  # noqa: PT012
            (folder / "half").write_text("")
            raise error
        assert list(tmp_path.iterdir()) == []


def test_a_folder_is_filled(tmp_path):
    (tmp_path / "source" / "sub").mkdir(parents=True)
    for name in ("same", "changed", "removed", "sub/same"):
        (tmp_path / "source" / name).write_text(name)
    (tmp_path / "target").mkdir()
    changed = {"changed": b"other", "new/file": b"more"}
    fill(tmp_path / "target", tmp_path / "source", changed, Files.COPY, keep=lambda path: path != "removed")
    found = {
        str(path.relative_to(tmp_path / "target")): path.read_text()
        for path in (tmp_path / "target").rglob("*")
        if path.is_file()
    }
    assert found == {"same": "same", "changed": "other", "sub/same": "sub/same", "new/file": "more"}


def test_a_place_without_a_source(tmp_path):
    refuse_existing(tmp_path / "out", None, overwrite=False)
    with pytest.raises(StepError, match="exists already"):
        refuse_existing(tmp_path, None, overwrite=False)


def test_a_directory_that_is_no_model_is_not_overwritten(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("mine")
    with pytest.raises(StepError, match="data: holds no model, and only a model is overwritten"):
        refuse_existing(tmp_path / "data", None, overwrite=True)
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty", None, overwrite=True)
