"""Versions are compared on the same keypoints, with the uncertainty that they leave."""

from pathlib import Path

import numpy as np
import pytest

from dlc_platform.dlc.comparison import NotComparable, comparable, compare
from dlc_platform.store import Store
from dlc_platform_tests.dlc.evaluations import write_evaluation

NAN = float("nan")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_figures_by_hand(store: Store) -> None:
    one = write_evaluation(store, "e1", "a", {"nose": [3, 4], "tail": [6, NAN]}, likelihood=[0.9, 0.2])
    other = write_evaluation(store, "e2", "b", {"nose": [1, 1], "tail": [2, NAN]})
    comparison = compare([one, other], store, cutoff=0.6)
    assert comparison.evaluations == {"a": "e1", "b": "e2"} and comparison.images == ("image 0", "image 1")
    errors = comparison.errors.set_index(["model", "bodypart"])
    assert list(dict.fromkeys(comparison.errors["bodypart"])) == ["all", "nose", "tail"]
    figures = errors.loc[("a", "all")]
    assert figures["keypoints"] == 3 and figures["rmse_px"] == pytest.approx(np.sqrt((9 + 16 + 36) / 3))
    assert figures["rmse_confident_px"] == pytest.approx(np.sqrt((9 + 36) / 2))
    assert figures["fraction_confident"] == pytest.approx(2 / 3)
    assert errors.loc[("a", "nose"), "rmse_px"] == pytest.approx(np.sqrt(12.5))
    # With two images a draw has one of them twice, or both.
    assert errors.loc[("a", "nose"), "rmse_low_px"] == 3 and errors.loc[("a", "nose"), "rmse_high_px"] == 4
    assert tuple(errors.loc[("b", "tail"), ["keypoints", "rmse_px", "rmse_low_px", "rmse_high_px"]]) == (1, 2, 2, 2)
    paired = comparison.paired("a", "b").set_index("bodypart")
    assert tuple(paired.loc["nose", ["images", "keypoints"]]) == (2, 2)
    assert paired.loc["nose", "difference_px"] == pytest.approx(1 - np.sqrt(12.5))
    assert paired.loc["tail", "difference_px"] == -4 and paired.loc["tail", "images"] == 1


def test_the_interval_covers_the_truth_as_often_as_it_says(store: Store) -> None:
    """Keypoints of one image fail together: intervals over keypoints would cover the truth in 70 of 100 cases."""
    random = np.random.default_rng(1)
    parts = [f"part {number}" for number in range(6)]
    covered, widths = 0, []
    for number in range(50):
        # Squared distances with the mean 4: half of the variance belongs to the image.
        squares = 2 * random.exponential(1, 60) + 2 * random.exponential(1, (6, 60))
        distances = dict(zip(parts, np.sqrt(squares).tolist(), strict=True))
        made = write_evaluation(store, f"e{number}", f"m{number}", distances, trained_on=[])
        row = compare([made], store, 0.6).errors.iloc[0]
        covered += row["rmse_low_px"] <= 2 <= row["rmse_high_px"]
        widths.append(row["rmse_high_px"] - row["rmse_low_px"])
    assert covered >= 45 and np.median(widths) < 0.35


def test_the_difference_is_surer_than_its_parts(store: Store) -> None:
    """Some images are hard for both: what differs by a little on every image is seen all the same."""
    random = np.random.default_rng(2)
    hard = random.exponential(10, 50)
    one = write_evaluation(store, "e1", "a", {"nose": (hard + 1).tolist()})
    other = write_evaluation(store, "e2", "b", {"nose": hard.tolist()})
    comparison = compare([one, other], store, 0.6)
    rows = comparison.errors.set_index(["model", "bodypart"])
    assert rows.loc[("b", "all"), "rmse_high_px"] > rows.loc[("a", "all"), "rmse_low_px"]  # they overlap
    assert comparison.paired("a", "b").iloc[0]["high_px"] < 0
    wider, narrower = (comparison.paired("a", "b", confidence).iloc[0] for confidence in (0.99, 0.5))
    assert wider["low_px"] < narrower["low_px"] < narrower["high_px"] < wider["high_px"]
    back = comparison.paired("b", "a").iloc[0]
    assert back["low_px"] == pytest.approx(-comparison.paired("a", "b").iloc[0]["high_px"])


def test_the_same_evaluations_give_the_same_figures(store: Store) -> None:
    random = np.random.default_rng(3)
    made = [write_evaluation(store, f"e{n}", f"m{n}", {"nose": random.exponential(3, 20).tolist()}) for n in range(3)]
    first, again, turned = compare(made, store, 0.6), compare(made, store, 0.6), compare(made[::-1], store, 0.6)
    assert first.errors.equals(again.errors) and first.id == again.id == turned.id
    pairs = (comparison.errors.set_index(["model", "bodypart"]).sort_index() for comparison in (first, turned))
    assert next(pairs).equals(next(pairs))
    assert first.id not in (compare(made[:2], store, 0.6).id, compare(made, store, 0.5).id)


def test_only_test_images_of_all_count(store: Store) -> None:
    one = write_evaluation(store, "e1", "a", {"nose": [3, 3, 99]}, ["1", "2", "old"])
    other = write_evaluation(store, "e2", "b", {"nose": [99, 2, 2]}, ["new", "1", "2"])
    comparison = compare([one, other], store, 0.6)
    assert comparison.images == ("1", "2")
    assert comparison.errors["rmse_px"].tolist() == [3, 2, 3, 2]


def test_what_a_version_was_trained_on_never_counts(store: Store) -> None:
    """The new seed's test image 1 was on the old version's training side."""
    old = write_evaluation(store, "e1", "a", {"nose": [0.1, 3]}, trained_on=["image 0", "other"])
    new = write_evaluation(store, "e2", "b", {"nose": [2, 2]})
    assert compare([old, new], store, 0.6).images == ("image 1",)
    assert compare([new], store, 0.6).images == ("image 0", "image 1")
    taught = write_evaluation(store, "e3", "c", {"nose": [2, 2]}, trained_on=["image 1"])
    with pytest.raises(NotComparable, match=r"of the 2 test images .* a on 1 and c on 1 were trained on") as caught:
        compare([old, new, taught], store, 0.6)
    assert "same `seed`" in caught.value.remedy


def test_an_imported_model_is_compared_on_everything(store: Store) -> None:
    imported = write_evaluation(store, "e1", "a", {"nose": [3, 3]}, trained_on=[])
    assert len(compare([imported], store, 0.6).images) == 2


def test_versions_without_a_test_image_in_common(store: Store) -> None:
    made = [write_evaluation(store, f"e{n}", f"m{n}", {"nose": [1]}, [str(n)]) for n in range(2)]
    with pytest.raises(NotComparable, match="versions m0, m1 were not tested on any image in common") as caught:
        compare(made, store, 0.6)
    assert "same `seed` and `test_fraction`" in caught.value.remedy


def test_a_corrected_label_is_another_question(store: Store) -> None:
    one = write_evaluation(store, "e1", "a", {"nose": [3, 3]}, x=10.0)
    other = write_evaluation(store, "e2", "b", {"nose": [1, 1]}, x=10.5)
    with pytest.raises(NotComparable, match="held against other labels"):
        compare([one, other], store, 0.6)


def test_body_parts_that_only_some_know(store: Store) -> None:
    """`all` is over what every version knows, so that a harder body part makes nobody look worse."""
    old = write_evaluation(store, "e1", "a", {"nose": [3, 3]}, unknown=["paw"])
    new = write_evaluation(store, "e2", "b", {"nose": [2, 2], "paw": [50, 50]})
    comparison = compare([old, new], store, 0.6)
    errors = comparison.errors.set_index(["model", "bodypart"])["rmse_px"]
    assert errors.to_dict() == {("a", "all"): 3, ("b", "all"): 2, ("a", "nose"): 3, ("b", "nose"): 2, ("b", "paw"): 50}
    assert comparison.paired("a", "b")["bodypart"].tolist() == ["all", "nose"]
    stranger = write_evaluation(store, "e3", "c", {"paw": [2, 2]}, unknown=["nose"])
    with pytest.raises(NotComparable, match="no body part is known to all"):
        compare([old, stranger], store, 0.6)


def test_by_session(store: Store) -> None:
    sessions = ["s1", "s1", "s2", None]
    made = [
        write_evaluation(store, f"e{n}", f"m{n}", {"nose": [1 + n, 3 + n, 5 + n, 90]}, sessions=sessions)
        for n in range(2)
    ]
    rows = compare(made, store, 0.6).by_session.set_index(["model", "session"])
    assert rows.index.tolist() == [("m0", "s1"), ("m1", "s1"), ("m0", "s2"), ("m1", "s2")]
    assert rows.loc[("m0", "s1"), "images"] == 2
    assert rows.loc[("m0", "s1"), "rmse_px"] == pytest.approx(np.sqrt(5))
    assert tuple(rows.loc[("m1", "s2"), ["images", "keypoints", "rmse_px", "rmse_high_px"]]) == (1, 1, 6, 6)
    unknown = write_evaluation(store, "e3", "c", {"nose": [1, 2]})
    assert compare([unknown], store, 0.6).by_session.empty
    # What became known later counts as well.
    later = compare([unknown], store, 0.6, sessions={"image 1": "s9"}).by_session
    assert later[["session", "images", "rmse_px"]].to_numpy().tolist() == [["s9", 1, 2.0]]


def test_a_version_of_another_split_does_not_spoil_the_comparison(store: Store) -> None:
    """The most wanted comes first, and whoever was trained on most of the test images is left out by name."""
    images = [f"image {number}" for number in range(60)]
    wanted = write_evaluation(store, "e1", "wanted", {"nose": [1] * 60})
    wider = write_evaluation(store, "e2", "wider", {"nose": [1] * 60}, trained_on=images[:35])
    other = write_evaluation(store, "e3", "other", {"nose": [1] * 60}, trained_on=images[20:])
    strange = write_evaluation(store, "e4", "strange", {"paw": [1] * 60}, unknown=["nose"])
    imported = write_evaluation(store, "e5", "imported", {"nose": [1] * 60}, trained_on=[])
    kept, left_out = comparable([wanted, wider, other, strange, imported], store)
    assert kept == [wanted, wider, imported]
    assert left_out["other"].startswith("it was trained on 25 of the 25 test images")
    assert left_out["strange"] == "it knows none of the body parts nose"
    assert len(compare(kept, store, 0.6).images) == 25
    assert comparable([], store) == ([], {})
