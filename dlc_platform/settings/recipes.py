"""The sections `projects` and `recipes` of lab.yaml: the labels, the networks, and the parameters of training."""

from difflib import get_close_matches
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, field_validator, model_validator

from dlc_platform.settings.fields import Folder, Name, Section, meant, without_zero

#: DeepLabCut's networks that find the keypoints of one animal in a whole picture, by its own names.
NET_TYPES = (
    "cspnext_s",
    "cspnext_m",
    "cspnext_x",
    "hrnet_w18",
    "hrnet_w32",
    "hrnet_w48",
    "resnet_50",
    "resnet_101",
)
_Scale = Annotated[float, Field(ge=0.01, le=100)]


def _network(text: str) -> str:
    if text not in NET_TYPES:
        raise ValueError(f"DeepLabCut has no single-animal network `{text}`; {meant(text, NET_TYPES)}")
    return text


def _weights(text: str) -> str:
    words = ("imagenet", "random")
    if text not in words and get_close_matches(text.lower(), words, cutoff=0.8):
        raise ValueError(f"is neither imagenet nor random; {meant(text, words)}, or ./{text} for a folder")
    return without_zero(text)


class ProjectEntry(Section):
    """A DeepLabCut project that the lab labels in. It is only read."""

    path: Folder = Field(description="The folder that holds the project's config.yaml.")
    split_seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**32,
        description="The seed that, with `test_fraction`, chooses the test images for all recipes of the project, "
        "so that their versions can be compared. By default each recipe uses its own `seed`.",
    )


class Transforms(Section):
    """Random changes of the training images; each is drawn anew for every image and epoch."""

    rotation: float = Field(
        default=30.0, ge=0, le=180, description="Largest rotation, in degrees.", json_schema_extra={"unit": "degrees"}
    )
    scale: tuple[_Scale, _Scale] = Field(default=(0.7, 1.3), description="The range of the scaling factor.")
    translation: int = Field(
        default=0, ge=0, le=10_000, description="Largest shift, in pixels.", json_schema_extra={"unit": "pixels"}
    )
    flip: bool = Field(default=False, description="Mirror left and right (only for bodies without sides).")
    noise: float = Field(
        default=12.75,
        ge=0,
        le=255,
        description="Largest standard deviation of Gaussian noise, in grey levels.",
        json_schema_extra={"unit": "grey levels"},
    )
    motion_blur: bool = Field(default=True, description="Blur some of the images as if the animal moved.")

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not scale[0] <= scale[1]:
            raise ValueError("must be two numbers, the smaller one first")
        return scale


class Recipe(Section):
    """The parameters of a model. Two recipes with the same values make the same parameter set."""

    project: Name = Field(description="The project whose labels are learned: one of the names under `projects`.")
    net_type: Annotated[str, AfterValidator(_network)] = Field(
        default="resnet_50",
        description="DeepLabCut's name of the network, such as `resnet_50`, `hrnet_w32` or `cspnext_s`; larger ones "
        "take longer to train and to run.",
    )
    epochs: int = Field(
        default=200, ge=1, le=100_000, description="The number of times that training goes through all training images."
    )
    batch_size: int = Field(
        default=8, ge=1, le=4096, description="The number of images that one step of training learns from."
    )
    learning_rate: float = Field(
        default=1e-4,
        ge=1e-9,
        le=10,
        description="The step of AdamW, DeepLabCut's optimizer, at the beginning of training.",
    )
    transforms: Transforms = Field(default=Transforms(), description="Random changes of the training images.")
    test_fraction: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="The fraction of the labelled images that is for testing and never for training.",
    )
    seed: int = Field(
        default=42,
        ge=0,
        lt=2**32,
        description="The seed of the random numbers of training; also that of the split if the project has no "
        "`split_seed`.",
    )
    apart_frames: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="Training images within so many frames of a test image of the same video are left out of training, "
        "so that near-duplicates never lie on both sides of the split.",
    )
    weights: Annotated[str, AfterValidator(_weights)] = Field(
        default="imagenet",
        min_length=1,
        description="The first weights: `imagenet` (downloaded), `random`, or a folder with config.json and "
        "model.safetensors.",
    )
    gpus: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="The number of GPUs to train on at once, by DeepLabCut's own support for several; each gets its "
        "part of every batch. It is not a parameter of the model.",
    )
    gpu_memory_gb: float | None = Field(
        default=None,
        ge=0.01,
        le=10_000,
        description="Gigabytes of each GPU that it needs; then runs share a GPU. By default a run has a GPU alone.",
    )

    @model_validator(mode="after")
    def _each_gpu_has_work(self) -> "Recipe":
        if self.gpus > self.batch_size:
            raise ValueError(f"gpus is {self.gpus} and batch_size {self.batch_size}: some GPUs would have no image")
        return self


class Split(NamedTuple):
    """The seed and the fraction that divide a project's labelled images into training and test images."""

    seed: int
    test_fraction: float
