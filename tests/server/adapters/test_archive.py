"""Archives from strangers: an adapter's files come out of them, and nothing else."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from opsin_server.adapters.archive import unpack
from opsin_server.adapters.problems import BadAdapter

FILES = {
    "adapter_config.json": b'{"r": 8}',
    "adapter_model.safetensors": bytes(1000),
    "README.md": b"# a model card",
    "optimizer.pt": b"a pickle",
    "runs/events.out": b"logs",
}
LIMIT = 10**6


def tar(files: dict[str, bytes], mode: str = "w", folder: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_of(*infos: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def zipped(files: dict[str, bytes], folder: str = "", mode: int = 0o100644, how: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(folder + name)
            info.external_attr, info.compress_type = mode << 16, how
            archive.writestr(info, data)
    return buffer.getvalue()


def unpacked(data: bytes, tmp_path: Path, limit: int = LIMIT) -> dict[str, bytes]:
    archive, to = tmp_path / "archive", tmp_path / "out"
    archive.write_bytes(data)
    to.mkdir()
    unpack(archive, to, limit)
    return {str(file.relative_to(tmp_path / "out")): file.read_bytes() for file in to.rglob("*")}


FORMS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "tar": tar,
    "tar.gz": lambda files: tar(files, "w:gz"),
    "tar.bz2": lambda files: tar(files, "w:bz2"),
    "tar.xz": lambda files: tar(files, "w:xz"),
    "tar of a folder": lambda files: tar(files, folder="my adapter/"),
    "tar with ./": lambda files: tar(files, folder="./"),
    "zip": zipped,
    "zip of a folder": lambda files: zipped(files, folder="my adapter/"),
    "zip, stored": lambda files: zipped(files, how=zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("form", FORMS)
def test_only_the_adapters_files_come_out(form: str, tmp_path: Path) -> None:
    found = unpacked(FORMS[form](FILES), tmp_path)
    assert found == {name: FILES[name] for name in ("adapter_config.json", "adapter_model.safetensors")}


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LINK = entry(WEIGHTS, tarfile.SYMTYPE, "/etc/passwd")
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "the archive cannot be read"),
    "text": (lambda: b"hello" * 500, "the archive cannot be read"),
    "upwards, tar": (lambda: tar({f"../{CONFIG}": b"{}"}), "no path below its own folder"),
    "upwards, zip": (lambda: zipped({f"a/../../{CONFIG}": b"{}"}), "no path below its own folder"),
    "absolute, tar": (lambda: tar_of(entry(f"/etc/{CONFIG}")), "no path below its own folder"),
    "absolute, zip": (lambda: zipped({f"/{CONFIG}": b"{}"}), "no path below its own folder"),
    "backslashes": (lambda: zipped({f"..\\{CONFIG}": b"{}"}), "no path below its own folder"),
    "a symbolic link": (lambda: tar_of(LINK), "the archive holds a link"),
    "a link elsewhere in it": (lambda: tar_of(entry("x", tarfile.SYMTYPE, "/")), "the archive holds a link"),
    "a hard link": (lambda: tar_of(entry(WEIGHTS, tarfile.LNKTYPE, "/etc/passwd")), "the archive holds a link"),
    "a device": (lambda: tar_of(entry(WEIGHTS, tarfile.CHRTYPE)), "holds no ordinary file"),
    "a pipe": (lambda: tar_of(entry(WEIGHTS, tarfile.FIFOTYPE)), "holds no ordinary file"),
    "a link in a zip": (lambda: zipped({WEIGHTS: b"/etc/passwd"}, mode=0o120777), "the archive holds a link"),
    "a bomb, zip": (lambda: zipped({WEIGHTS: bytes(10**8)}), "more than 1,000,000 bytes unpacked"),
    "a bomb, tar.gz": (lambda: tar({WEIGHTS: bytes(10**8)}, "w:gz"), "more than 1,000,000 bytes unpacked"),
    "a bomb that is passed over": (lambda: tar({"x": bytes(10**8)}, "w:gz"), "bytes unpacked"),
    "a bomb of many": (lambda: zipped({CONFIG: bytes(9 * 10**5), WEIGHTS: bytes(9 * 10**5)}), "1,000,000 bytes"),
    "many members, tar": (lambda: tar_of(*(entry(f"{i}") for i in range(10_001))), "more than 10,000 members"),
    "many members, zip": (lambda: zipped({f"{i}": b"" for i in range(10_001)}), "more than 10,000 members"),
    "twice": (lambda: tar_of(entry(CONFIG), entry(CONFIG)), "more than one adapter_config.json"),
    "two adapters": (lambda: tar({f"a/{CONFIG}": b"{}", f"b/{CONFIG}": b"{}"}), "are in 2 folders"),
    "too deep": (lambda: tar({f"saves/lora/{CONFIG}": b"{}"}), "lie too deep, in saves/lora: pack that folder"),
    "two folders": (lambda: tar({f"a/{CONFIG}": b"{}", f"b/{WEIGHTS}": b""}), "are in 2 folders"),
    "a header larger than memory": (lambda: pax_bomb(), "a header of"),
    "cut, zip": (lambda: zipped(FILES)[:-30], "the archive cannot be read"),
    "cut, tar.gz": (lambda: tar(FILES, "w:gz")[:-30], "the archive cannot be read"),
    "cut, tar": (lambda: tar(FILES)[:1300], "the archive cannot be read"),
    "cut between members, tar": (lambda: tar(FILES)[:1024], "its end is missing"),
    "a gzip of nothing": (lambda: gzip.compress(b""), "the archive cannot be read"),
    "a password": (lambda: encrypted(), "the archive cannot be read"),
    "an unknown compression": (lambda: of_method(97), "the archive cannot be read"),
}


@pytest.mark.parametrize("first", [False, True])
def test_what_a_trainer_leaves_below_is_passed_over(first: bool, tmp_path: Path) -> None:
    """The last checkpoint's adapter, in front of the final one or behind it."""
    below = {f"./checkpoint-100/{name}": b"an older one" for name in (CONFIG, WEIGHTS)}
    top = {f"./{name}": FILES[name] for name in (CONFIG, WEIGHTS)}
    found = unpacked(tar({**below, **top} if first else {**top, **below}), tmp_path)
    assert found == {name: FILES[name] for name in (CONFIG, WEIGHTS)}


def pax_bomb() -> bytes:
    """An extended header that says it has 8 GiB."""
    info = entry("x", tarfile.XHDTYPE, size=0)
    info.size = 2**33 - 1
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def encrypted() -> bytes:
    data = bytearray(zipped({CONFIG: b"{}"}))
    central = data.rfind(b"PK\x01\x02")
    data[6] |= 1
    data[central + 8] |= 1
    return bytes(data)


def of_method(number: int) -> bytes:
    data = bytearray(zipped({CONFIG: b"{}"}))
    central = data.rfind(b"PK\x01\x02")
    struct.pack_into("<H", data, 8, number)
    struct.pack_into("<H", data, central + 10, number)
    return bytes(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(name: str, tmp_path: Path) -> None:
    make, why = HOSTILE[name]
    with pytest.raises(BadAdapter, match=why):
        unpacked(make(), tmp_path)
    inside = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert inside <= {CONFIG, WEIGHTS}
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "out"}


@pytest.mark.parametrize("form", FORMS)
def test_mutated_archives_never_do_anything_else(form: str, tmp_path: Path) -> None:
    data = FORMS[form](FILES)
    for number in range(40):
        chance = random.Random(number)
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 6)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            found = unpacked(bytes(changed), folder)
        except BadAdapter:
            continue
        assert found.keys() <= {CONFIG, WEIGHTS}
