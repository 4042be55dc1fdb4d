"""What is kept for years is what was made, or somebody is told; and nothing of use is ever removed."""

import json
import os
import pwd
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dlc_platform.catalog.products import _PRODUCTS, recorded_products
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_bytes
from dlc_platform.lab.retention import garbage, remove, verify
from dlc_platform.store import KINDS, Kind, Store
from dlc_platform_tests.catalog.conftest import lab as lab
from dlc_platform_tests.catalog.small_lab import identity
from dlc_platform_tests.keeping import TABLES, fill, make_old

COLLECT = """
import sys
from pathlib import Path
from sqlalchemy import make_url
from dlc_platform.catalog.database import open_catalog
from dlc_platform.lab.retention import garbage, remove
from dlc_platform.store import Store

engine, store = open_catalog(make_url(sys.stdin.readline())), Store(Path(sys.argv[1]))
found = list(garbage(engine, store))
print("removing", flush=True)
for item in found:
    assert remove(engine, store, item)
"""


@pytest.fixture
def store(lab: Engine, tmp_path: Path) -> Store:
    """A store that holds what the catalogue `lab` names, and is as the catalogue knows it."""
    store = Store(tmp_path / "store")
    fill(lab, store)
    return store


def found(engine: Engine, store: Store) -> list[tuple[str, str]]:
    """What `verify` finds: path below the store, and problem; each says what to do."""
    differences = list(verify(engine, store))
    assert all(difference.remedy for difference in differences)
    return [(difference.path.relative_to(store.root).as_posix(), difference.problem) for difference in differences]


def put(store: Store, kind: Kind, letter: str) -> Path:
    return store.put(kind, identity(letter), {}, lambda folder: (folder / "file").write_text(letter))


def test_a_store_as_the_catalogue_knows_it(lab: Engine, store: Store) -> None:
    progress = []
    assert list(verify(lab, store, lambda done, products: progress.append((done, products)))) == []
    assert progress == [(done, 8) for done in range(9)]
    assert list(garbage(lab, store)) == []


def test_the_catalogue_knows_every_kind_of_product() -> None:
    assert tuple(TABLES) == tuple(_PRODUCTS) == KINDS


POSES = f"poses/{identity('8')}"


def change(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def edit_manifest(product: Path, **changes: Any) -> None:
    manifest = json.loads((product / "manifest.json").read_text())
    (product / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (shutil.rmtree, [(POSES, "the catalogue names this product, but the store does not have it")]),
        (lambda p: (p / "sub/file").unlink(), [(f"{POSES}/sub/file", "the file is missing")]),
        (lambda p: shutil.rmtree(p / "sub"), [(f"{POSES}/sub/file", "the file is missing")]),
        (lambda p: (p / "more").touch(), [(f"{POSES}/more", "the manifest does not list this file")]),
        (lambda p: change(p / "sub/file", b"9"), [(f"{POSES}/sub/file", "the content of the file has changed")]),
        (lambda p: change(p / "sub/file", b""), [(f"{POSES}/sub/file", "the file has 0 bytes instead of 1")]),
        (lambda p: (p / "manifest.json").unlink(), [(f"{POSES}/manifest.json", "the manifest is missing")]),
        (
            lambda p: edit_manifest(p, frames=9),
            [(f"{POSES}/manifest.json", "this is not the manifest that the catalogue knows")],
        ),
        (
            lambda p: edit_manifest(p, files=[{"path": "../../escape"}]),
            [
                (f"{POSES}/manifest.json", "this is not the manifest that the catalogue knows"),
                (f"{POSES}/manifest.json", "the manifest is damaged, so the other files cannot be checked"),
            ],
        ),
        (
            lambda p: change(p / "manifest.json", b"{\xff"),
            [(f"{POSES}/manifest.json", "this cannot be read: invalid start byte")],
        ),
        (
            lambda p: change(p / "manifest.json", b"[]"),
            [
                (f"{POSES}/manifest.json", "this is not the manifest that the catalogue knows"),
                (f"{POSES}/manifest.json", "the manifest is damaged, so the other files cannot be checked"),
            ],
        ),
        (
            lambda p: (p / "sub/file").rename(p / "sub/moved") and (p / "sub/file").symlink_to("moved"),
            [
                (f"{POSES}/sub/file", "this is a symbolic link, which is not followed"),
                (f"{POSES}/sub/moved", "the manifest does not list this file"),
            ],
        ),
        (
            lambda p: (
                (p.parents[2] / "elsewhere").mkdir()
                or (shutil.move(p, p.parents[2] / "elsewhere") and p.symlink_to(p.parents[2] / "elsewhere" / p.name))
            ),
            [(POSES, "this is a symbolic link, which is not followed")],
        ),
        (
            lambda p: shutil.move(p.parent, p.parents[2] / "poses") and p.parent.symlink_to(p.parents[2] / "poses"),
            [("poses", "this is a symbolic link, which is not followed")],
        ),
        (
            lambda p: (p / "sub/file").unlink() or os.mkfifo(p / "sub/file"),
            [(f"{POSES}/sub/file", "this is neither a file nor a folder")],
        ),
        (
            lambda p: (p.parent / "notes").mkdir() or (p.parent / "list.txt").touch(),
            [
                ("poses/list.txt", "this is not a product of the store"),
                ("poses/notes", "this is not a product of the store"),
            ],
        ),
    ],
)
def test_every_difference_is_found(
    lab: Engine, store: Store, damage: Callable[[Path], object], expected: list[tuple[str, str]]
) -> None:
    damage(store.path("poses", identity("8")))
    assert found(lab, store) == expected


def test_all_differences_are_found_at_once(lab: Engine, store: Store) -> None:
    shutil.rmtree(store.path("datasets", identity("d")))
    (store.path("models", identity("a")) / "sub" / "file").unlink()
    change(store.path("models", identity("b")) / "sub" / "file", b"9")
    assert len(found(lab, store)) == 3


def test_a_product_that_no_row_names(lab: Engine, store: Store) -> None:
    path = put(store, "models", "c")
    (difference,) = verify(lab, store)
    assert difference.path == path and difference.warning and "yet" in difference.problem
    make_old(path)
    (difference,) = verify(lab, store)
    assert difference.path == path and not difference.warning
    assert difference.problem == "no row of the catalogue names this product"


def test_a_product_older_than_checksums_goes_on_working(lab: Engine, store: Store) -> None:
    product = store.path("poses", identity("8"))
    manifest = json.loads((product / "manifest.json").read_text())
    del manifest["files"]
    (product / "manifest.json").write_text(json.dumps(manifest))
    with lab.begin() as connection:
        connection.execute(text("update dlc.pose_estimate set manifest_sha256 = null"))
    assert [(difference.path.parent.name, difference.warning) for difference in verify(lab, store)] == [
        (identity("8"), True),
        (identity("9"), True),
    ]
    # It was found again, and its row is younger than it is.
    with lab.begin() as connection:
        change = text("update dlc.pose_estimate set manifest_sha256 = :sha256 where id = :id")
        connection.execute(change, {"sha256": store.claim("poses", identity("8")), "id": identity("8")})
    first, _ = verify(lab, store)
    assert first.warning and "lists no checksums" in first.problem


def test_what_a_crash_left(lab: Engine, store: Store) -> None:
    partial = store.root / "poses" / ".partial-half"
    partial.mkdir()
    (partial / "file").write_text("half")
    assert found(lab, store) == []  # somebody may be writing it
    make_old(partial)
    assert found(lab, store) == [("poses/.partial-half", "a crash left this half-written or half-removed")]
    (item,) = garbage(lab, store)
    assert (item.path, item.product, item.size_bytes) == (partial, None, 4)
    assert remove(lab, store, item)
    assert not partial.exists()
    assert not remove(lab, store, item)


def test_a_store_that_is_not_there_is_one_difference(lab: Engine, store: Store) -> None:
    shutil.rmtree(store.root)
    (difference,) = verify(lab, store)
    assert difference.path == store.root and "names 8 products" in difference.problem
    assert list(garbage(lab, store)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody who may not read a file")
def test_what_cannot_be_read_does_not_stop_it(
    lab: Engine, store: Store, make_reachable: Callable[[], AbstractContextManager[Path]]
) -> None:
    with make_reachable() as folder:
        shutil.copytree(store.root, folder / "store")
        store = Store(folder / "store")
        for path in (
            store.root / "datasets",
            store.path("models", identity("a")),
            store.path("models", identity("b")) / "sub" / "file",
            store.path("poses", identity("8")) / "sub",
            store.path("poses", identity("9")) / "manifest.json",
        ):
            path.chmod(0)
        shutil.rmtree(store.path("evaluations", identity("7")))
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
        try:
            differences = found(lab, store)
        finally:
            os.seteuid(0)
    unreadable = "this cannot be read: Permission denied"
    assert differences == [
        ("datasets", unreadable),
        (f"evaluations/{identity('7')}", "the catalogue names this product, but the store does not have it"),
        (f"models/{identity('a')}", unreadable),
        (f"models/{identity('b')}/sub/file", unreadable),
        (f"poses/{identity('8')}/sub", unreadable),
        (f"poses/{identity('9')}/manifest.json", unreadable),
    ]


def test_garbage_is_what_no_row_names_and_nobody_wrote_for_a_day(lab: Engine, store: Store) -> None:
    useless, young = put(store, "models", "c"), put(store, "poses", "e")
    for kind in KINDS:
        for path in (store.root / kind).iterdir():
            if path != young:
                make_old(path)
    (store.root / "poses" / "notes").mkdir()
    make_old(store.root / "poses" / "notes")
    (item,) = garbage(lab, store)
    assert (item.path, item.product) == (useless, ("models", identity("c")))
    assert item.size_bytes == sum(path.stat().st_size for path in useless.iterdir())
    assert useless.exists()  # looking removes nothing
    assert remove(lab, store, item)
    assert not useless.exists() and young.exists() and (store.root / "poses" / "notes").exists()
    assert [problem for _, problem in found(lab, store)] == [
        "this is not a product of the store",
        "no row of the catalogue names this product yet",
    ]


def test_what_becomes_of_use_meanwhile_is_kept(lab: Engine, store: Store) -> None:
    paths = [put(store, "models", letter) for letter in ("1", "2", "3")]
    for path in paths:
        make_old(path)
    recorded, claimed, rewritten = garbage(lab, store)
    with lab.begin() as connection:
        connection.execute(text("create temporary table copied as select * from dlc.model_version limit 1"))
        connection.execute(text("update copied set id = :id"), {"id": identity("1")})
        connection.execute(text("insert into dlc.model_version select * from copied"))
    store.claim("models", identity("2"))
    (rewritten.path / "file").touch()
    assert not any(remove(lab, store, item) for item in (recorded, claimed, rewritten))
    assert all(path.exists() for path in paths)


def test_links_are_never_followed_nor_removed(lab: Engine, store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    link = store.root / "models" / identity("c")
    link.symlink_to(outside)
    (store.root / "models" / ".partial-link").symlink_to(outside)
    useless = put(store, "models", "e")
    (useless / "link").symlink_to(outside)
    make_old(useless)
    make_old(outside)
    for path in (link, store.root / "models" / ".partial-link"):
        os.utime(path, (0, 0), follow_symlinks=False)
    (item,) = garbage(lab, store)
    assert item.path == useless and item.size_bytes < 1000
    assert remove(lab, store, item)
    assert not useless.exists() and link.is_symlink()
    assert (outside / "precious").read_text() == "precious"
    shutil.move(store.root / "poses", tmp_path / "poses")
    (store.root / "poses").symlink_to(tmp_path / "poses")
    make_old(put(Store(tmp_path), "poses", "e"))
    assert list(garbage(lab, store)) == []


def test_the_catalogue_of_another_lab_makes_nothing_garbage(engine: Engine, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_old(put(store, "models", "a"))
    with pytest.raises(PlatformError, match="names none of the products in"):
        list(garbage(engine, store))


def test_what_cannot_be_removed_is_out_of_sight_and_found_again(
    lab: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    useless = put(store, "models", "c")
    make_old(useless)
    (item,) = garbage(lab, store)

    def rmtree(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "file"))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(PlatformError, match="cannot be removed: Permission denied"):
            remove(lab, store, item)
    assert not useless.exists()
    (left,) = garbage(lab, store)
    assert left.product is None and remove(lab, store, left)
    assert found(lab, store) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_in_the_middle_leaves_nothing_half_visible(lab: Engine, store: Store, seed: int) -> None:
    def write(folder: Path) -> None:
        for number in range(300):
            (folder / f"{number}").write_text(str(number))

    names = [f"{number:064x}" for number in range(20)]
    for name in names:
        make_old(store.put("poses", name, {}, write))
    process = subprocess.Popen(
        [sys.executable, "-c", COLLECT, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(lab.url.render_as_string(hide_password=False) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "removing\n"
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.kill()
    process.communicate()
    seen = [identity for kind, identity in store.products() if kind == "poses" and identity in names]
    for name in seen:
        assert len(list(store.path("poses", name).iterdir())) == 301
    for item in garbage(lab, store):
        assert remove(lab, store, item)
    assert found(lab, store) == []


def test_a_copy_of_an_imported_file_is_named(lab: Engine, store: Store) -> None:
    kind, name = min(product for product in recorded_products(lab) if product[0] == "poses")
    content = b"numbers, and whatever somebody put beside them"
    shutil.rmtree(store.path(kind, name))

    def write(folder: Path) -> None:
        (folder / "one.h5").write_bytes(content)
        (folder / "two.h5").write_bytes(b"written anew")

    store.put(kind, name, {"origin": "imported", "file_sha256": sha256_bytes(content)}, write)
    with lab.begin() as connection:
        told = {"sha256": store.claim(kind, name), "id": name}
        connection.execute(text("update dlc.pose_estimate set manifest_sha256 = :sha256 where id = :id"), told)
    (difference,) = verify(lab, store)
    assert difference.warning and difference.path == store.path(kind, name) / "one.h5"
    assert "import the file again" in difference.remedy
