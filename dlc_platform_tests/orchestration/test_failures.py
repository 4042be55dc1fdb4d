"""Of all that a failed run says, the sentence that was meant for a person."""

import errno
from collections.abc import Callable

import dagster as dg
import pytest

from dlc_platform.dlc.inference import OtherFrames
from dlc_platform.errors import PlatformError, sentence_for_people
from dlc_platform.orchestration.failures import failure_reasons

FULL = "no space left on the disk of the store /data. Free some space."


def ours_from_a_system_error() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x")
    except OSError as error:
        raise PlatformError("no space left on the disk of the store /data", "Free some space") from error


def two_of_ours() -> None:
    try:
        raise PlatformError("the file x is damaged", "Bring it back")
    except PlatformError as error:
        raise PlatformError("the session sub-1 cannot be tracked", "Mend its file x") from error


def ours_below_another() -> None:
    try:
        ours_from_a_system_error()
    except PlatformError as error:
        raise RuntimeError("the writer thread died") from error


def ours_as_context() -> None:
    try:
        ours_from_a_system_error()
    except PlatformError:
        raise KeyError("x")  # noqa: B904 (as code does that fails while it tidies up)


def a_kind_of_ours() -> None:
    raise OtherFrames("the video has other frames: 3, not 4", "Run again")


def none_of_ours() -> None:
    try:
        raise KeyError("camera")
    except KeyError as error:
        raise ValueError("the table has no column") from error


def one_without_words() -> None:
    try:
        raise TimeoutError
    except TimeoutError as error:
        raise ValueError("the server did not answer") from error


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (ours_from_a_system_error, FULL),
        (two_of_ours, "the session sub-1 cannot be tracked. Mend its file x."),
        (ours_below_another, FULL),
        (ours_as_context, FULL),
        (a_kind_of_ours, "the video has other frames: 3, not 4. Run again."),
        (none_of_ours, "KeyError: 'camera'"),
        (one_without_words, "ValueError: the server did not answer"),
    ],
)
def test_the_sentence_nearest_to_the_top_is_told(fails: Callable[[], None], reason: str) -> None:
    @dg.asset
    def failing() -> None:
        fails()

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([failing], instance=instance, raise_on_error=False)
    assert failure_reasons(result.all_events) == [reason]
    with pytest.raises(Exception) as raised:
        fails()
    ours = sentence_for_people(raised.value)
    assert str(ours) == reason if "." in reason else ours is None
