"""The manifests of the products of the store: the keys of each kind's ``manifest.json``.

How a manifest is read and written is in `store`. Keys that came with a later version are missing in older products, and
have defaults here.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from dlc_platform.store import Manifest, in_words
from dlc_platform.video.account import FrameAccount

#: As it was written: 1 stays 1, and 1.0 stays 1.0.
Number = int | float
BodyPartPair = Annotated[list[str], Field(min_length=2, max_length=2)]


_ACCOUNT = TypeAdapter(FrameAccount)


def _account(value: Any) -> Any:
    """The account of a manifest that is read; one that is to be written is there already."""
    if not isinstance(value, dict):
        return value
    try:
        return _ACCOUNT.validate_python(value)
    except ValidationError as error:
        raise ValueError(in_words(error)) from None


class DatasetManifest(Manifest):
    """Labels and images that are frozen for training; see `dlc.dataset`."""

    bodyparts: list[str]
    skeleton: list[BodyPartPair]
    task: str
    scorer: str | None = None
    project: str | None = None
    seed: int | None = None
    test_fraction: Number | None = None
    apart_frames: int = 0
    n_train: int
    n_test: int
    n_left_out: int = 0
    sessions: list[str]


class ModelManifest(Manifest):
    """A network, trained here or elsewhere; see `dlc.training` and `dlc.importing`."""

    scorer: str
    bodyparts: list[str]
    skeleton: list[BodyPartPair] = []
    dataset: str | None = None
    origin: str | None = None
    tracker: dict[str, Any] = {}
    versions: dict[str, Any] = {}


class TrainedRecipe(BaseModel):
    """The recipe that a network was trained by, with all that it said then."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    epochs: int
    batch_size: int


class TrainedModelManifest(ModelManifest):
    """A network that was trained here."""

    weights_sha256: str
    recipe: TrainedRecipe
    batch_size: int | None = None
    device: str | None = None
    seconds: Number
    continued_after: list[int] | None = None


class ImportedModelManifest(ModelManifest):
    """A network that was trained elsewhere."""

    weights_sha256: str
    net_type: str
    detector_sha256: str | None
    source: dict[str, Any]


class ExportManifest(Manifest):
    """A network compiled for other software, and how far its keypoints lie from those of PyTorch; see `dlc.exports`."""

    model: str
    backend: str
    device: str
    precision: Literal["full", "half"]
    images: int
    eager_ms_per_frame: Number
    versions: dict[str, Any] = {}
    accepted: bool
    reason: str | None
    deviation_px: Number | None
    deviation_likelihood: Number | None
    ms_per_frame: Number | None


class EvaluationManifest(Manifest):
    """The predictions of a model on the images of a dataset; see `dlc.evaluation`."""

    model: str
    dataset: str
    versions: dict[str, Any] = {}
    backend: str | None = None
    device: str | None = None
    seconds: Number


class PosesManifest(Manifest):
    """The poses of a video by a model; see `dlc.inference`."""

    video: str | None = None
    model: str | None = None
    parameters: dict[str, Any] = {}
    scorer: str | None = None
    frames: int
    account: Annotated[FrameAccount | None, BeforeValidator(_account)] = None
    lost_frames: list[list[int]] = []
    damaged_frames: list[list[int]] = []
    note: str = ""
    seconds: Number
    backend: str = "deeplabcut"
    export: str | None = None
    device: str | None = None
    batch_size: int | None = None
    versions: dict[str, Any] = {}


class ImportedPosesManifest(Manifest):
    """Poses of a video that were computed elsewhere; see `interop.dlc_poses`."""

    video: str
    model: str | None
    scorer: str
    individuals: list[str] = []
    bodyparts: list[str] = []
    frames: int
    rows_in_file: int
    origin: str | None = None
    file: str | None = None
    file_sha256: str
    file_path: str
    note: str
