import pytest
from sqlalchemy import Engine

from dlc_platform.catalog.promotions import promote
from dlc_platform.catalog.sessions import assign_cameras, current_files, register_session
from dlc_platform_tests.catalog.small_lab import (
    dataset,
    evaluate,
    export,
    identity,
    image,
    promotion,
    record_dataset,
    recording,
    session,
    track,
    train,
    video,
)


@pytest.fixture
def lab(engine: Engine) -> Engine:
    """Session 1: `top` tracked by model a, then b; `side` broken. Session 2: no poses. Model b is in production."""
    one, two = "sub-1_ses-1", "sub-2_ses-1"
    register_session(
        engine,
        session(one),
        [(recording(one, "top", "1"), video("1")), (recording(one, "side", problem="cut short"), None)],
    )
    register_session(engine, session(two), [(recording(two, "top", "2"), video("2", frames=150))])
    record_dataset(
        engine,
        "first",
        dataset("d"),
        [image("d", "3", two), image("d", "4", one), image("d", "5", None, "test")],
    )
    train(engine, "a", "d")
    evaluate(engine, "6", "a", "d", 4.0)
    promote(engine, promotion("a", evaluation="6", rmse_px=4.5), expected=None)
    export(engine, "2", "a")
    _, top = current_files(engine, one)
    track(engine, "8", top, "a")
    train(engine, "b", "d", recipe="second")
    evaluate(engine, "7", "b", "d", 2.0)
    promote(engine, promotion("b", evaluation="7", rmse_px=3.0), expected=identity("a"))
    track(engine, "9", top, "b")
    assign_cameras(engine, {"top": "maze"}.get)
    return engine
