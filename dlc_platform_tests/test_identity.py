import hashlib
from pathlib import Path

import pytest

from dlc_platform.identity import canonical_json, sha256_file, sha256_json, short


def test_canonical_json_does_not_depend_on_order_or_spelling() -> None:
    assert canonical_json({"b": [1, 2.0], "a": {"d": None, "c": "é"}}) == '{"a":{"c":"é","d":null},"b":[1,2.0]}'
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    assert sha256_json(("x", "y")) == sha256_json(["x", "y"])
    assert canonical_json([0.1, 1e-4, 1e300]) == "[0.1,0.0001,1e+300]"


@pytest.mark.parametrize(
    ("one", "other"),
    [([1], [1.0]), ([1], ["1"]), ([1], [True]), ([None], [0]), ([[1], 2], [1, [2]]), ({"a": "b"}, {"b": "a"})],
)
def test_what_differs_has_another_identity(one: object, other: object) -> None:
    assert sha256_json(one) != sha256_json(other)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_without_json_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"learning_rate": number})


def test_the_hash_of_json_is_that_of_its_utf8_text() -> None:
    assert sha256_json({"a": "é"}) == hashlib.sha256('{"a":"é"}'.encode()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 4 << 20, (4 << 20) + 1])
def test_the_hash_of_a_file_covers_all_of_it(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    identity = sha256_file(tmp_path / "file")
    assert identity == hashlib.sha256(content).hexdigest()
    assert identity.startswith(short(identity)) and len(short(identity)) == 12
