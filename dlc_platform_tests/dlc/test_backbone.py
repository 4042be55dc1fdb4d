import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest

from dlc_platform.dlc.backbone import NETWORKS, check_weights, write_first_snapshot
from dlc_platform.errors import PlatformError
from dlc_platform.settings.recipes import NET_TYPES


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_the_networks_are_those_of_the_installed_deeplabcut():
    spec = find_spec("deeplabcut")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "pose_estimation_pytorch" / "config" / "backbones"
    assert sorted(NET_TYPES) == sorted(NETWORKS) == sorted(file.stem for file in folder.glob("*.yaml"))


@pytest.mark.parametrize("net_type", ["resnet_50", "cspnext_s"])
@pytest.mark.usefixtures("empty_cache")
def test_imagenet_without_internet_says_what_to_do(monkeypatch: pytest.MonkeyPatch, net_type: str):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(PlatformError, match="cannot be reached") as error:
        check_weights("imagenet", net_type)
    assert "weights: random" in error.value.remedy


def test_the_check_imports_nothing_heavy():
    code = (
        "import sys; from dlc_platform.dlc.backbone import check_weights\n"
        "try: check_weights('imagenet', 'cspnext_s'); check_weights('imagenet', 'resnet_50')\n"
        "except Exception: pass\n"
        "assert not {'torch', 'timm', 'deeplabcut'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


@pytest.mark.usefixtures("empty_cache")
def test_imagenet_when_told_to_stay_offline(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PlatformError, match="cannot be reached"):
        check_weights("imagenet", "resnet_50")


@pytest.fixture
def hub() -> Iterator[str]:
    """A server that answers as the hub does to a stranger: with an error."""

    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(401)

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("empty_cache")
def test_imagenet_when_the_hub_answers(monkeypatch: pytest.MonkeyPatch, hub: str):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub)
    check_weights("imagenet", "resnet_50")


def test_imagenet_from_the_cache(empty_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import timm
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = timm.get_pretrained_cfg("resnet50_gn").hf_hub_id.replace("/", "--")
    folder = tmp_path / "no-cache" / f"models--{repository}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(b"weights")
    check_weights("imagenet", "resnet_50")


@pytest.fixture(scope="module")
def local_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a network as timm saves them."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    model = timm.create_model("resnet50_gn", pretrained=False, num_classes=7)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet50_gn", "num_classes": 7}))
    return folder


def resnet_config():
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig

    project = {"Task": "t", "bodyparts": ["nose"], "project_path": "nowhere"}
    return PoseConfig.build(project, "nowhere/pytorch_config.yaml", top_down=False, net_type="resnet_50")


def test_training_starts_from_local_weights(local_weights: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    check_weights(str(local_weights), "resnet_50")
    config = resnet_config()
    write_first_snapshot(config, str(local_weights), "resnet_50", tmp_path / "first.pt")
    snapshot = torch.load(tmp_path / "first.pt", weights_only=True)
    given = load_file(local_weights / "model.safetensors")
    assert snapshot["metadata"]["epoch"] == 0
    compared = 0
    for name, tensor in given.items():
        if not name.startswith("fc."):  # the classifier is no part of a backbone
            assert torch.equal(snapshot["model"][f"backbone.model.{name}"], tensor)
            compared += 1
    assert compared > 100
    assert config.model["backbone"]["model_name"] == "resnet50_gn"  # the stored configuration names no folder


def test_local_weights_that_do_not_fit(local_weights: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(PlatformError, match="resnet50_gn, and resnet_101 is resnet101"):
        check_weights(str(local_weights), "resnet_101")
    with pytest.raises(PlatformError, match="cspnext_s cannot start from a local folder"):
        check_weights(str(local_weights), "cspnext_s")
    with pytest.raises(PlatformError, match=r"holds no config\.json"):
        check_weights(str(tmp_path), "resnet_50")
    weights = load_file(local_weights / "model.safetensors")
    weights["conv1.weight"] = weights["conv1.weight"][:32].contiguous()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((local_weights / "config.json").read_bytes())
    check_weights(str(tmp_path), "resnet_50")
    with pytest.raises(PlatformError, match="do not fit resnet_50"):
        write_first_snapshot(resnet_config(), str(tmp_path), "resnet_50", tmp_path / "first.pt")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(PlatformError, match="is not timm's"):
        check_weights(str(tmp_path), "resnet_50")
