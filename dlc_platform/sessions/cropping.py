"""Crops of a DeepLabCut project (`cropping: true` in config.yaml) for which the lab has no region.

DeepLabCut analyses only the crop of each video. Here only a region does that, so a network that learned from crops
would get whole pictures without a warning.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from dlc_platform.dlc.images import size_of
from dlc_platform.dlc.labels import Remark
from dlc_platform.dlc.project import CONFIG_FILE, Project, read_project
from dlc_platform.errors import PlatformError
from dlc_platform.settings.inference import Tracking
from dlc_platform.settings.recipes import ProjectEntry
from dlc_platform.video.region import Region
from dlc_platform.video.registered import KnownFile


def crop_without_region(name: str, project: Project, tracking: Tracking, files: Iterable[KnownFile]) -> Remark | None:
    """The remark about a project that crops videos for which the lab has no region; None if all is well.

    Parameters
    ----------
    name
        The name of the project in lab.yaml.
    files
        The files of all registered sessions.
    """
    if project.cropped is None:
        return None
    own = [file for file in files if tracking.project_of(file.camera) == name]
    without = [
        file
        for file in own
        if tracking.region_for(file.session, file.camera) is None
        and project.cropped != Region(0, 0, file.width, file.height)
    ]
    if without:
        where = f"for {len(without)} of {len(own)} registered videos, such as {without[0].name} of {without[0].session}"
    elif own or tracking.regions:
        return None
    else:
        where = "in lab.yaml"
    return _remark(project, project.cropped, f"no region is in force {where}: whole pictures are used")


def video_without_region(
    projects: Mapping[str, ProjectEntry], tracking: Tracking, session: str, camera: str, width: int, height: int
) -> Remark | None:
    """The same remark for one video that is tracked, by its camera's project; None if the project cannot be read.

    Parameters
    ----------
    width, height
        The size of its picture as it is shown, in pixels.
    """
    name = tracking.project_of(camera)
    if name is None or tracking.region_for(session, camera) is not None:
        return None
    try:
        project = read_project(projects[name].path)
    except PlatformError:  # reading the labels reports it
        return None
    if project.cropped in (None, Region(0, 0, width, height)):
        return None
    return _remark(project, project.cropped, "this video has no region, and its whole picture is tracked")


def region_rule(region: Region) -> str:
    """A region as a rule of lab.yaml for every camera and session."""
    return (
        f"{{camera: '*', session: '*', x: {region.x}, y: {region.y}, width: {region.width}, height: {region.height}}}"
    )


def holds_crops(project: Project) -> bool:
    """True if the first image of every folder of labels has the size of the project's crop, by its header."""
    sizes = set()
    for folder in sorted((project.path / "labeled-data").glob("*/")):
        image = next((file for file in sorted(folder.iterdir()) if _is_picture(file)), None)
        if image is not None and not folder.name.endswith("_labeled"):
            try:
                sizes.add(size_of(image))
            except PlatformError:  # reading the labels reports it
                return False
    return project.cropped is not None and sizes == {(project.cropped.width, project.cropped.height)}


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp") and not file.name.startswith(".")


def _remark(project: Project, region: Region, consequence: str) -> Remark:
    videos = project.config.get("video_sets")
    entries = videos.values() if isinstance(videos, dict) else ()
    crops = sorted({str(entry.get("crop")) for entry in entries if isinstance(entry, dict)})
    several = f"; the `crop` of its videos differs ({'; '.join(crops[:3])}), so see which region each needs"
    return Remark(
        f"{project.path / CONFIG_FILE} says `cropping: true`, so DeepLabCut looks only at {region} of each "
        f"video, but {consequence}{several if len(crops) > 1 else ''}",
        f"Write the rule {region_rule(region)} under `regions` in lab.yaml, or `cropping: false` in config.yaml if "
        "whole pictures are meant",
    )
