"""Foreign scripts are those that their makers released, each with its licence."""

import json
from hashlib import sha256

from dlc_platform.web.pages.look import HERE

VENDOR = HERE / "static" / "vendor"


def test_each_foreign_file_is_the_one_that_is_named():
    named = json.loads((VENDOR / "vendored.json").read_text())
    assert {one["file"] for one in named} == {path.name for path in VENDOR.iterdir() if path.suffix in (".js", ".css")}
    for one in named:
        assert sha256((VENDOR / one["file"]).read_bytes()).hexdigest() == one["sha256"], one["file"]
        assert one["version"] and one["licence"] and (VENDOR / one["licence_file"]).read_text()
