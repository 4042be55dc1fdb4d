"""Products are whole or not there, whatever happens to the process or the disk."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dlc_platform.dlc.dataset import load_dataset
from dlc_platform.dlc.evaluation import load_evaluation
from dlc_platform.dlc.inference import load_poses
from dlc_platform.dlc.network import CONFIG_FILE, read_configuration
from dlc_platform.errors import PlatformError
from dlc_platform.pose import table as pose_table
from dlc_platform.pose.table import POSE_TABLE, read_parquet
from dlc_platform.store import MANIFEST, Kind, Store, opened, require_intact
from dlc_platform_tests.keeping import make_old
from dlc_platform_tests.products import manifest_of

IDENTITY = "ab" * 32
SLOW_PUT = """
import sys, time
from pathlib import Path
from dlc_platform.store import Store
from dlc_platform_tests.keeping import make_old

def write(folder):
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(600)

Store(Path(sys.argv[1])).put("poses", sys.argv[2], {}, write)
"""
PUT_WHEN_TOLD = """
import sys
from pathlib import Path
from dlc_platform.store import Store
from dlc_platform_tests.keeping import make_old

def write(folder):
    (folder / "content").write_text("the same" * 100_000)
    print("ready", flush=True)
    sys.stdin.readline()

print(Store(Path(sys.argv[1])).put("models", sys.argv[2], {"n": 1}, write))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def everything(store: Store) -> list[str]:
    return sorted(path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file())


def content(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        (folder / "sub").mkdir()
        (folder / "sub" / "content").write_text(text)

    return write


def test_a_product_and_its_manifest(store: Store) -> None:
    assert not store.has("models", IDENTITY)
    path = store.put("models", IDENTITY, {"seconds": 1.5, "name": "é"}, content("one"))
    assert path == store.path("models", IDENTITY) == store.root / "models" / IDENTITY
    assert store.has("models", IDENTITY) and not store.has("poses", IDENTITY)
    manifest = manifest_of(store.path("models", IDENTITY))
    assert {key: manifest[key] for key in ("seconds", "name")} == {"seconds": 1.5, "name": "é"}
    assert everything(store) == [f"models/{IDENTITY}/manifest.json", f"models/{IDENTITY}/sub/content"]


def test_what_is_there_is_never_written_again(store: Store) -> None:
    path = store.put("models", IDENTITY, {"n": 1}, content("one"))
    assert store.put("models", IDENTITY, {"n": 2}, content("two")) == path
    assert (path / "sub" / "content").read_text() == "one"
    assert manifest_of(store.path("models", IDENTITY))["n"] == 1


def test_a_manifest_lists_the_other_files(store: Store) -> None:
    def write(folder: Path) -> None:
        content("é")(folder)
        (folder / "empty").touch()

    path = store.put("models", IDENTITY, {}, write)
    assert manifest_of(store.path("models", IDENTITY))["files"] == [
        {"path": "empty", "size_bytes": 0, "sha256": hashlib.sha256().hexdigest()},
        {"path": "sub/content", "size_bytes": 2, "sha256": hashlib.sha256("é".encode()).hexdigest()},
    ]
    assert store.claim("models", IDENTITY) == hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()


def test_a_product_holds_no_links(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    with pytest.raises(ValueError, match="is a link"):
        store.put("models", IDENTITY, {}, lambda folder: (folder / "link").symlink_to(tmp_path / "elsewhere"))
    assert not store.has("models", IDENTITY)


def test_only_what_was_left_alone_for_a_day_is_removed(store: Store) -> None:
    path = store.put("models", IDENTITY, {}, content("one"))
    assert not store.remove("models", IDENTITY)
    make_old(path)
    store.claim("models", IDENTITY)
    assert not store.remove("models", IDENTITY)
    make_old(path)
    (path / "sub" / "content").touch()
    assert not store.remove("models", IDENTITY)
    assert store.products() == [("models", IDENTITY)]
    make_old(path)
    assert store.remove("models", IDENTITY)
    assert store.products() == []
    assert list((store.root / "models").iterdir()) == []
    assert not store.remove("models", IDENTITY)


def test_a_product_that_is_claimed_while_it_is_removed_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.put("models", IDENTITY, {}, content("one"))
    make_old(path)
    rename = os.rename

    def rename_after_a_claim(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        store.claim("models", IDENTITY)
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_after_a_claim)
    assert not store.remove("models", IDENTITY)
    assert everything(store) == [f"models/{IDENTITY}/manifest.json", f"models/{IDENTITY}/sub/content"]


@pytest.mark.parametrize(
    "error", [ValueError("bad"), KeyboardInterrupt(), OSError(errno.EIO, "disk"), PlatformError("no", "yes")]
)
def test_a_writer_that_raises_leaves_nothing(store: Store, error: BaseException) -> None:
    def write(folder: Path) -> None:
        content("half")(folder)
        raise error

    with pytest.raises(type(error)) as caught:
        store.put("models", IDENTITY, {}, write)
    assert caught.value is error
    assert not store.has("models", IDENTITY)
    assert list((store.root / "models").iterdir()) == []
    store.put("models", IDENTITY, {}, content("whole"))
    assert store.has("models", IDENTITY)


def test_a_manifest_that_cannot_be_written_leaves_nothing(store: Store) -> None:
    with pytest.raises(TypeError):
        store.put("models", IDENTITY, {"path": Path()}, content("one"))
    assert everything(store) == []


def test_a_killed_writer_leaves_nothing_visible(store: Store) -> None:
    arguments = [sys.executable, "-c", SLOW_PUT, str(store.root), IDENTITY]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    finally:
        process.kill()
        process.communicate()
    assert not store.has("poses", IDENTITY)
    (partial,) = (store.root / "poses").iterdir()
    assert partial.name.startswith(".partial-") and (partial / "half").exists()

    path = store.put("poses", IDENTITY, {"n": 1}, content("whole"))
    assert sorted(item.name for item in path.iterdir()) == ["manifest.json", "sub"]

    assert store.remove_partials() == []  # as far as anybody can tell it is still being written
    yesterday = time.time() - 25 * 3600
    os.utime(partial, (yesterday, yesterday))
    assert store.remove_partials() == []  # a file in it is younger
    os.utime(partial / "half", (yesterday, yesterday))
    assert store.remove_partials() == [partial]
    assert store.remove_partials() == []
    assert everything(store) == [f"poses/{IDENTITY}/manifest.json", f"poses/{IDENTITY}/sub/content"]


def test_remove_partials_before_there_is_a_store(store: Store) -> None:
    assert store.remove_partials() == []


def test_two_processes_make_one_product(store: Store) -> None:
    arguments = [sys.executable, "-c", PUT_WHEN_TOLD, str(store.root), IDENTITY]
    processes = [subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert len(list((store.root / "models").iterdir())) == 2
        assert not store.has("models", IDENTITY)
        with ThreadPoolExecutor() as pool:
            said = list(pool.map(lambda process: process.communicate("go\n")[0], processes))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0]
    assert said == [f"{store.path('models', IDENTITY)}\n"] * 2
    assert everything(store) == [f"models/{IDENTITY}/content", f"models/{IDENTITY}/manifest.json"]
    assert (store.path("models", IDENTITY) / "content").read_text() == "the same" * 100_000


def write_bytes(folder: Path) -> None:
    (folder / "big").write_bytes(bytes(4 << 20))


def write_parquet(folder: Path) -> None:
    import numpy as np
    import pandas as pd

    pd.DataFrame({"x": np.random.default_rng(0).random(1 << 20)}).to_parquet(folder / "table.parquet")


def write_hdf(folder: Path) -> None:
    import numpy as np
    import pandas as pd

    frame = pd.DataFrame({"x": np.random.default_rng(0).random(1 << 20)})
    frame.to_hdf(folder / "table.h5", key="df_with_missing", format="table", mode="w")


def write_many_files(folder: Path) -> None:
    for number in range(100):
        (folder / str(number)).touch()


def write_and_hide_the_reason(folder: Path) -> None:
    try:
        write_bytes(folder)
    except OSError:
        raise RuntimeError("PytorchStreamWriter failed writing file data/5") from None


@pytest.mark.parametrize("write", [write_bytes, write_parquet, write_hdf, write_many_files, write_and_hide_the_reason])
def test_a_full_disk_is_named(small_disk: Path, write: Callable[[Path], None]) -> None:
    store = Store(small_disk / "store")
    with pytest.raises(PlatformError, match="no space left on the disk of the store") as caught:
        store.put("poses", IDENTITY, {}, write)
    assert str(store.root) in caught.value.problem and "Free some space" in caught.value.remedy
    assert caught.value.__cause__ is not None
    assert everything(store) == []
    store.put("poses", IDENTITY, {}, content("fits again"))
    assert store.has("poses", IDENTITY)


def test_a_disk_that_is_full_before_the_first_byte(small_disk: Path) -> None:
    write_many = small_disk / "others"
    write_many.mkdir()
    with pytest.raises(OSError, match="No space left"):
        write_many_files(write_many)
    with pytest.raises(PlatformError, match="no space left on the disk"):
        Store(small_disk / "store").put("poses", IDENTITY, {}, content("one"))


def test_another_failure_is_not_called_a_full_disk(small_disk: Path) -> None:
    def write(folder: Path) -> None:
        content("one")(folder)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Store(small_disk / "store").put("poses", IDENTITY, {}, write)


def test_a_store_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(PlatformError, match=r"nothing can be written to .* in the store: Not a directory"):
        Store(tmp_path / "store").put("poses", IDENTITY, {}, content("one"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwrite(file: Path) -> None:
    """The size stays."""
    file.write_bytes(bytes(file.stat().st_size))


READERS: dict[str, tuple[Kind, str, Callable[[Path], object]]] = {
    "poses": ("poses", POSE_TABLE, lambda path: read_parquet(path / POSE_TABLE)),
    "labels": ("datasets", "labels.parquet", lambda path: load_dataset(path).labels()),
    "predictions": (
        "evaluations",
        "predictions.parquet",
        lambda path: load_evaluation(Store(path.parents[1]), path.name),
    ),
    "configuration": ("models", CONFIG_FILE, read_configuration),
    "manifest": ("poses", MANIFEST, load_poses),
}


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (Path.unlink, "is missing"),
        (cut, "is damaged"),
        (overwrite, "is damaged"),
    ],
)
@pytest.mark.parametrize("name", READERS)
def test_a_product_that_was_harmed_is_named_with_what_to_do(
    tmp_path: Path, name: str, harm: Callable[[Path], None], problem: str
) -> None:
    kind, file, read = READERS[name]
    store = Store(tmp_path)

    def write(folder: Path) -> None:
        table = pd.DataFrame(
            {
                "frame": np.arange(3, dtype=np.int32),
                "time_s": np.arange(3, dtype=np.float32),
                "individual": pd.Categorical(["animal"] * 3),
                "bodypart": pd.Categorical(["nose"] * 3),
                **{column: np.zeros(3, np.float32) for column in ("x", "y", "likelihood")},
            }
        )
        if file == POSE_TABLE:
            pose_table.write_parquet(table, folder / file)
        elif file.endswith(".parquet"):
            table.to_parquet(folder / file)
        elif file != MANIFEST:
            (folder / file).write_text("data: {inference: {}}\n")

    manifest = {"n_train": 1, "n_test": 1, "bodyparts": ["nose"], "skeleton": [], "task": "t", "sessions": []}
    manifest |= {"model": "m", "dataset": "d", "seconds": 1.0}
    product = store.put(kind, "a" * 64, manifest, write)
    harm(product / file)
    with pytest.raises(PlatformError) as raised:
        read(product)
    told = str(raised.value)
    assert f"{product / file} {problem}" in told
    assert f"Bring {product} back from a copy of the store, or" in told
    assert "dlc-platform verify" in told and "\n" not in told


def test_a_file_of_another_user_is_no_damage(tmp_path: Path) -> None:
    product = Store(tmp_path).put("models", "a" * 64, {}, lambda folder: (folder / "a.yaml").write_text("a: 1"))
    denied = pytest.raises(PlatformError, match=r"a\.yaml cannot be read: Permission denied\. Give the user")
    with denied, opened(product, "a.yaml"):
        raise PermissionError(errno.EACCES, "Permission denied")  # root, who may run this, is never denied


def test_the_images_of_a_dataset_are_there_and_what_they_were(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "images").mkdir()
        (folder / "images" / "a.png").write_bytes(b"a picture")

    manifest = {"n_train": 1, "n_test": 0, "bodyparts": ["nose"], "skeleton": [], "task": "t", "sessions": []}
    product = Store(tmp_path).put("datasets", "a" * 64, manifest, write)
    require_intact(product)
    image = load_dataset(product).image_path("a", "img.jpg")
    assert image == product / "images" / "a.png"
    overwrite(image)
    with pytest.raises(PlatformError, match=r"a\.png is damaged: its content has changed since it was made\. Bring"):
        require_intact(product)
    image.unlink()
    for look in (lambda: require_intact(product), lambda: load_dataset(product).image_path("a", "img.png")):
        with pytest.raises(PlatformError, match=r"images/a\.png is missing"):
            look()
