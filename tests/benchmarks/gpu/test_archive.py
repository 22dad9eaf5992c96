"""The archive of a campaign's results: what it holds, that it is whole, and what is refused when it is unpacked."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from benchmarks.gpu import archive as module
from benchmarks.gpu.archive import UnsafeArchive, unpack, write_archive


def fill(folder: Path) -> None:
    for name in (
        *("kernels.csv", "steps.jsonl", "report.md", "breakdown-a.png", "tuned/nvidia-h200-torch-2.11.0.json"),
        *("logs/compile-kernels.log", "caches/triton/abc/kernel.json", "caches/a.done", "search/0/full-2/run.json"),
        *("steps.lock", ".report.md.123", "tuned/.hidden/x.json"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_it_holds_all_results_without_caches_and_is_unpacked_as_it_was(tmp_path: Path) -> None:
    folder, archive = tmp_path / "out", tmp_path / "elsewhere" / "results.tar.gz"
    fill(folder)
    (folder / "link.csv").symlink_to("/etc/passwd")
    write_archive(folder, archive)
    unpack(archive, tmp_path / "again")
    found = {path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*.*")}
    assert found == {
        *("kernels.csv", "steps.jsonl", "report.md", "breakdown-a.png", "tuned/nvidia-h200-torch-2.11.0.json"),
        "logs/compile-kernels.log",
    }
    assert (tmp_path / "again" / "tuned" / "nvidia-h200-torch-2.11.0.json").read_text().startswith("tuned/")
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_only_the_end_of_a_log_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.log").write_bytes(b"x" * 200_000 + b"the end")
    write_archive(tmp_path / "out", tmp_path / "a.tar.gz")
    unpack(tmp_path / "a.tar.gz", tmp_path / "again")
    content = (tmp_path / "again" / "a.log").read_bytes()
    assert len(content) < 100_000
    assert content.endswith(b"the end")


def test_a_writer_that_is_killed_leaves_the_archive_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out")
    write_archive(tmp_path / "out", tmp_path / "a.tar.gz")
    before = (tmp_path / "a.tar.gz").read_bytes()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "addfile", stop)
    with pytest.raises(KeyboardInterrupt):
        write_archive(tmp_path / "out", tmp_path / "a.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == before


def made(path: Path, name: str, kind: bytes = tarfile.REGTYPE, size: int = 3) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        good = tarfile.TarInfo("kernels.csv")
        good.size = 3
        tar.addfile(good, io.BytesIO(b"a,b"))
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, size if kind == tarfile.REGTYPE else 0, "/etc/passwd"
        tar.addfile(member, io.BytesIO(b"x" * size))
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../evil.csv", tarfile.REGTYPE),
        ("/tmp/evil.csv", tarfile.REGTYPE),
        ("a/../../evil.csv", tarfile.REGTYPE),
        (".ssh/evil.csv", tarfile.REGTYPE),
        ("evil.py", tarfile.REGTYPE),
        ("evil.csv", tarfile.SYMTYPE),
        ("evil.csv", tarfile.LNKTYPE),
        ("evil.csv", tarfile.FIFOTYPE),
    ],
)
def test_what_no_campaign_writes_is_refused_before_anything_is_unpacked(tmp_path: Path, name: str, kind: bytes) -> None:
    with pytest.raises(UnsafeArchive):
        unpack(made(tmp_path / "a.tar.gz", name, kind), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    with pytest.raises(UnsafeArchive, match="too large"):
        unpack(made(tmp_path / "a.tar.gz", "large.csv", size=2000), tmp_path / "out")
    assert not (tmp_path / "out").exists()
