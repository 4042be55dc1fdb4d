"""Versions are compared on the same keypoints, with the uncertainty that they leave."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dlc_platform.dlc.comparison import FEWEST_IMAGES, NotComparable, comparable, compare, expanded_tail, fewest_images
from dlc_platform.store import Store
from dlc_platform_tests.dlc.evaluations import write_evaluation

NAN = float("nan")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_figures_by_hand(store: Store) -> None:
    one = write_evaluation(store, "e1", "a", {"nose": [3, 4], "tail": [6, NAN]}, likelihood=[0.9, 0.2])
    other = write_evaluation(store, "e2", "b", {"nose": [1, 1], "tail": [2, NAN]})
    comparison = compare([one, other], cutoff=0.6)
    assert comparison.evaluations == {"a": "e1", "b": "e2"} and comparison.images == ("image 0", "image 1")
    errors = comparison.errors.set_index(["model", "bodypart"])
    assert list(dict.fromkeys(comparison.errors["bodypart"])) == ["all", "nose", "tail"]
    figures = errors.loc[("a", "all")]
    assert figures["keypoints"] == 3 and figures["rmse_px"] == pytest.approx(np.sqrt((9 + 16 + 36) / 3))
    assert figures["rmse_confident_px"] == pytest.approx(np.sqrt((9 + 36) / 2))
    assert figures["fraction_confident"] == pytest.approx(2 / 3)
    assert errors.loc[("a", "nose"), "rmse_px"] == pytest.approx(np.sqrt(12.5))
    assert errors[["rmse_low_px", "rmse_high_px"]].isna().all(axis=None)  # two images are too few for an interval
    assert tuple(errors.loc[("b", "tail"), ["images", "keypoints", "missed", "rmse_px"]]) == (1, 1, 0, 2)
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
        row = compare([made], 0.6).errors.iloc[0]
        covered += row["rmse_low_px"] <= 2 <= row["rmse_high_px"]
        widths.append(row["rmse_high_px"] - row["rmse_low_px"])
    assert covered >= 45 and np.median(widths) < 0.35


def test_the_difference_is_surer_than_its_parts(store: Store) -> None:
    """Some images are hard for both: what differs by a little on every image is seen all the same."""
    random = np.random.default_rng(2)
    hard = random.exponential(10, 50)
    one = write_evaluation(store, "e1", "a", {"nose": (hard + 1).tolist()})
    other = write_evaluation(store, "e2", "b", {"nose": hard.tolist()})
    comparison = compare([one, other], 0.6)
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
    first, again, turned = compare(made, 0.6), compare(made, 0.6), compare(made[::-1], 0.6)
    assert first.errors.equals(again.errors) and first.id == again.id == turned.id
    pairs = (comparison.errors.set_index(["model", "bodypart"]).sort_index() for comparison in (first, turned))
    assert next(pairs).equals(next(pairs))
    assert first.id not in (compare(made[:2], 0.6).id, compare(made, 0.5).id)


def test_only_test_images_of_all_count(store: Store) -> None:
    one = write_evaluation(store, "e1", "a", {"nose": [3, 3, 99]}, ["1", "2", "old"])
    other = write_evaluation(store, "e2", "b", {"nose": [99, 2, 2]}, ["new", "1", "2"])
    comparison = compare([one, other], 0.6)
    assert comparison.images == ("1", "2")
    assert comparison.errors["rmse_px"].tolist() == [3, 2, 3, 2]


def test_what_a_version_was_trained_on_never_counts(store: Store) -> None:
    """The new seed's test image 1 was on the old version's training side."""
    old = write_evaluation(store, "e1", "a", {"nose": [0.1, 3]}, trained_on=["image 0", "other"])
    new = write_evaluation(store, "e2", "b", {"nose": [2, 2]})
    assert compare([old, new], 0.6).images == ("image 1",)
    assert compare([new], 0.6).images == ("image 0", "image 1")
    taught = write_evaluation(store, "e3", "c", {"nose": [2, 2]}, trained_on=["image 1"])
    with pytest.raises(NotComparable, match=r"a was trained on 1 of its 2 and c was trained on 1 of its 2") as caught:
        compare([old, new, taught], 0.6)
    assert "one `split_seed`" in caught.value.remedy


def test_an_imported_model_is_compared_on_everything(store: Store) -> None:
    imported = write_evaluation(store, "e1", "a", {"nose": [3, 3]}, trained_on=[])
    assert len(compare([imported], 0.6).images) == 2


def test_versions_without_a_test_image_in_common(store: Store) -> None:
    made = [write_evaluation(store, f"e{n}", f"m{n}", {"nose": [1]}, [str(n)]) for n in range(2)]
    with pytest.raises(NotComparable, match="versions m0, m1 have no test image in common that none of them") as caught:
        compare(made, 0.6)
    assert "one `split_seed` and its recipes one `test_fraction`" in caught.value.remedy


def test_a_corrected_label_is_another_question(store: Store) -> None:
    one = write_evaluation(store, "e1", "a", {"nose": [3, 3]}, x=10.0)
    other = write_evaluation(store, "e2", "b", {"nose": [1, 1]}, x=10.5)
    with pytest.raises(NotComparable, match="held against other labels"):
        compare([one, other], 0.6)


def test_body_parts_that_only_some_know(store: Store) -> None:
    """`all` is over what every version knows, so that a harder body part makes nobody look worse."""
    old = write_evaluation(store, "e1", "a", {"nose": [3, 3]}, unknown=["paw"])
    new = write_evaluation(store, "e2", "b", {"nose": [2, 2], "paw": [50, 50]})
    comparison = compare([old, new], 0.6)
    errors = comparison.errors.set_index(["model", "bodypart"])["rmse_px"]
    assert errors.to_dict() == {("a", "all"): 3, ("b", "all"): 2, ("a", "nose"): 3, ("b", "nose"): 2, ("b", "paw"): 50}
    assert comparison.paired("a", "b")["bodypart"].tolist() == ["all", "nose"]
    stranger = write_evaluation(store, "e3", "c", {"paw": [2, 2]}, unknown=["nose"])
    with pytest.raises(NotComparable, match="no body part is known to all"):
        compare([old, stranger], 0.6)


def test_by_session(store: Store) -> None:
    sessions = ["s1", "s1", "s2", None]
    made = [
        write_evaluation(store, f"e{n}", f"m{n}", {"nose": [1 + n, 3 + n, 5 + n, 90]}, sessions=sessions)
        for n in range(2)
    ]
    rows = compare(made, 0.6).by_session.set_index(["model", "session"])
    assert rows.index.tolist() == [("m0", "s1"), ("m1", "s1"), ("m0", "s2"), ("m1", "s2")]
    assert rows.loc[("m0", "s1"), "images"] == 2
    assert rows.loc[("m0", "s1"), "rmse_px"] == pytest.approx(np.sqrt(5))
    assert tuple(rows.loc[("m1", "s2"), ["images", "keypoints", "rmse_px"]]) == (1, 1, 6)
    assert np.isnan(rows.loc[("m1", "s2"), "rmse_high_px"])
    unknown = write_evaluation(store, "e3", "c", {"nose": [1, 2]})
    assert compare([unknown], 0.6).by_session.empty
    # What became known later counts as well.
    later = compare([unknown], 0.6, sessions={"image 1": "s9"}).by_session
    assert later[["session", "images", "rmse_px"]].to_numpy().tolist() == [["s9", 1, 2.0]]


def test_a_version_of_another_split_does_not_spoil_a_comparison(store: Store) -> None:
    """The most wanted comes first, and whoever was trained on most of the test images is left out by name."""
    images = [f"image {number}" for number in range(60)]
    wanted = write_evaluation(store, "e1", "wanted", {"nose": [1] * 60})
    wider = write_evaluation(store, "e2", "wider", {"nose": [1] * 60}, trained_on=images[:35])
    other = write_evaluation(store, "e3", "other", {"nose": [1] * 60}, trained_on=images[20:])
    strange = write_evaluation(store, "e4", "strange", {"paw": [1] * 60}, unknown=["nose"])
    imported = write_evaluation(store, "e5", "imported", {"nose": [1] * 60}, trained_on=[])
    kept, left_out = comparable([wanted, wider, other, strange, imported])
    assert kept == [wanted, wider, imported]
    assert left_out["other"].startswith(
        "it was trained on 40 of the 60 test images, as a version of another split is: "
    )
    assert "0 would be left of the 25" in left_out["other"]
    assert left_out["strange"] == "it knows none of the body parts nose"
    assert len(compare(kept, 0.6).images) == 25
    assert comparable([]) == ([], {})


def test_no_version_cuts_the_images_below_those_of_an_interval(store: Store) -> None:
    """Each of these halves what is left, which adds up to nothing."""
    images = [f"image {number}" for number in range(14)]
    wanted = write_evaluation(store, "e1", "wanted", {"nose": [1] * 14})
    halved = write_evaluation(store, "e2", "halved", {"nose": [1] * 14}, trained_on=images[:7])
    again = write_evaluation(store, "e3", "again", {"nose": [1] * 14}, trained_on=images[4:9])
    kept, left_out = comparable([wanted, halved, again])
    assert kept == [wanted, halved]
    assert "it was trained on 5 of the 14 test images" in left_out["again"]
    assert "with it, 5 would be left of the 7 that there are without it" in left_out["again"]
    small = write_evaluation(store, "e4", "small", {"nose": [1] * 3})
    assert comparable([small]) == ([small], {})


def test_an_interval_needs_six_images(store: Store) -> None:
    for images, there in ((5, False), (6, True)):
        one, other = (
            write_evaluation(
                store, f"e{name}{images}", name, {"nose": list(range(1, images + 1)), "tail": [1] * images}
            )
            for name in ("a", "b")
        )
        comparison = compare([one, other], 0.6, sessions={f"image {number}": "s" for number in range(images)})
        for table in (comparison.errors, comparison.by_session):
            assert table[["rmse_low_px", "rmse_high_px"]].notna().all(axis=None) == there
            assert table["images"].tolist() == [images] * len(table)
        assert comparison.paired("a", "b")["low_px"].notna().all() == there
    assert fewest_images(0.95) == FEWEST_IMAGES == 6 and fewest_images(0.99) == 8 and fewest_images(0.5) == 6
    # A body part that is labelled in five of many images has none either.
    rare = [1.0] * 5 + [NAN] * 15
    rows = compare([write_evaluation(store, "r", "r", {"nose": [2] * 20, "tail": rare})], 0.6).errors
    assert rows.set_index("bodypart")["rmse_low_px"].isna().to_dict() == {"all": False, "nose": False, "tail": True}


def test_to_give_up_on_a_keypoint_makes_no_version_better(store: Store) -> None:
    """A top-down model gives no position where it sees no animal, which is where others are far off."""
    one = write_evaluation(store, "e1", "a", {"nose": [3] * 7 + [50], "tail": [1] * 8})
    other = write_evaluation(store, "e2", "b", {"nose": [2] * 7 + [50], "tail": [1] * 8}, missed=[("nose", 7)])
    comparison = compare([one, other], 0.6)
    errors = comparison.errors.set_index(["model", "bodypart"])
    assert errors.loc[("a", "nose"), ["images", "keypoints", "missed", "rmse_px"]].tolist() == [7, 7, 0, 3]
    assert errors.loc[("b", "nose"), ["images", "keypoints", "missed", "rmse_px"]].tolist() == [7, 7, 1, 2]
    assert errors.loc[("b", "all"), "missed"] == 1
    assert comparison.paired("a", "b").set_index("bodypart")["more_missed"].to_dict() == {
        "all": 1,
        "nose": 1,
        "tail": 0,
    }
    # Of a body part to which a version gives no position at all, nothing is compared, and that is said.
    nothing = write_evaluation(
        store, "e3", "c", {"nose": [1] * 8, "tail": [1] * 8}, missed=[("nose", place) for place in range(8)]
    )
    comparison = compare([one, nothing], 0.6)
    errors = comparison.errors.set_index(["model", "bodypart"])
    assert errors.loc[("c", "nose"), ["keypoints", "missed"]].tolist() == [0, 8]
    assert comparison.paired("a", "c").set_index("bodypart")["more_missed"].to_dict() == {
        "all": 0,
        "nose": 8,
        "tail": 0,
    }
    kept, left_out = comparable([one, other, nothing])
    assert kept == [one, other] and left_out == {"c": "it gives no position for 8 of the 16 labelled keypoints"}
    blind = write_evaluation(store, "e4", "d", {"nose": [1] * 2}, missed=[("nose", 0), ("nose", 1)])
    with pytest.raises(NotComparable, match="give no position"):
        compare([one, blind], 0.6)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_expanded_interval_is_that_of_the_distributions(confidence: float) -> None:
    for images in [*range(6, 60), 101, 500, 4000]:
        quantile = stats.t.ppf((1 + confidence) / 2, images - 1)
        tail = stats.norm.cdf(-np.sqrt(images / (images - 1)) * quantile)
        assert expanded_tail(images, confidence) == pytest.approx(tail, rel=1e-9)
