"""The import of models and poses that were made elsewhere: first into the lab's store, then into its catalogue.

`interop` and `dlc.importing` decide what a foreign file may hold; this module decides what it belongs to.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from dlc_platform.catalog import tables
from dlc_platform.catalog.estimates import record_imported_poses
from dlc_platform.catalog.models import bodyparts_of, model_version, record_imported_model
from dlc_platform.catalog.sessions import current_files, session_keys
from dlc_platform.catalog.writing import BodyParts
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.importing import ImportedModel, import_model
from dlc_platform.errors import PlatformError
from dlc_platform.estimates.quality_gate import assess
from dlc_platform.interop.dlc_poses import ImportedPoses, import_poses, read_poses
from dlc_platform.sessions.registration import require_trackable, require_unchanged
from dlc_platform.settings.quality import PoseRules, VideoRules
from dlc_platform.store import Store
from dlc_platform.text.names import require_known
from dlc_platform.video.probe import probe


@dataclass(frozen=True)
class RegisteredPoses:
    """Imported poses and their video; `in_force` is true if they are now the poses of its recording."""

    poses: ImportedPoses
    video: Path
    in_force: bool


def register_model(
    engine: Engine,
    store: Store,
    projects: Collection[str],
    project: str,
    folder: Path,
    snapshot: str | None = None,
    detector_snapshot: str | None = None,
) -> tuple[ImportedModel, bool]:
    """Import a model that was trained elsewhere and make it a model version of a project.

    Parameters
    ----------
    projects
        The names of the projects in lab.yaml.
    folder, snapshot, detector_snapshot
        As `dlc.importing.import_model` takes them.

    Returns
    -------
    ImportedModel, bool
        The bool is False if it was a version of the project already.

    Raises
    ------
    PlatformError
        When lab.yaml has no such project, the model cannot be imported, or it belongs to another project.
    """
    if project not in projects:
        raise PlatformError(
            f"lab.yaml has no project {project!r}",
            f"Choose among {', '.join(projects)}, or add it under `projects`",
        )
    model = import_model(folder, store, snapshot, detector_snapshot)
    new = record_imported_model(
        engine,
        tables.ModelVersion(
            id=model.id,
            project=project,
            net_type=model.net_type,
            weights_sha256=model.weights_sha256,
            detector_sha256=model.detector_sha256,
            scorer=model.scorer,
            source=model.source,
            manifest_sha256=store.claim("models", model.id),
        ),
        BodyParts(model.bodyparts, model.skeleton),
    )
    known = model_version(engine, model.id)
    if known is not None and known.project != project:
        raise PlatformError(
            f"the model {model.id} is a version of the project {known.project}", "A version belongs to one project"
        )
    return model, new


def register_poses(
    engine: Engine,
    store: Store,
    videos: VideoRules,
    rules: PoseRules,
    file: Path,
    session: str,
    recording: str | None = None,
    model_id: str | None = None,
    allow_mismatch: bool = False,
    use: bool = False,
    by: str | None = None,
) -> RegisteredPoses:
    """Import a pose file of DeepLabCut as the poses of a registered video.

    Parameters
    ----------
    videos, rules
        The rules of lab.yaml that can hold up the video, and those that judge the poses.
    recording
        Needed if the session has several and the file's name does not begin with that of its video.
    model_id, allow_mismatch
        As `interop.dlc_poses.import_poses` takes them.
    use
        Put them in force even if the video has other poses.
    by
        The person who imports them.

    Raises
    ------
    PlatformError
        When the video is not clear, was replaced, or is in quarantine; or the file does not fit the video or the model.
    """
    require_known("registered session", [session], session_keys(engine), "`dlc-platform sessions HOME`")
    found = read_poses(file)  # before the video, because reading that takes minutes
    row = _video_of(current_files(engine, session), file, session, recording)
    if row.video_id is None:
        raise PlatformError(
            f"the video {row.path} cannot be read: {row.problem}", "Mend it, and materialise session_videos again"
        )
    if model_id is not None:
        predicted = bodyparts_of(engine, model_id)
        if unknown := [part for part in found.bodyparts if part not in predicted]:
            raise PlatformError(
                f"{file} holds {', '.join(unknown)}, and the model {model_id} predicts {', '.join(predicted)}",
                "Name the model that made these poses, or name none",
            )
    require_unchanged(row)
    require_trackable(engine, row, videos)
    video = probe(Path(row.path))
    if video.sha256 != row.video_id:
        raise PlatformError(
            f"{row.path} is not the video that was registered: its content has changed",
            "Register its session again, then import its poses",
        )
    poses = import_poses(file, video, store, model_id, allow_mismatch)
    in_force = record_imported_poses(
        engine,
        tables.PoseEstimate(
            id=poses.id,
            video_id=poses.video_id,
            model_id=poses.model_id,
            scorer=poses.scorer,
            frames=poses.frames,
            frames_lost=video.account.lost,
            source={
                "file": poses.file,
                "file_sha256": poses.file_sha256,
                "rows": poses.rows_in_file,
                "note": poses.note,
                **({} if by is None else {"imported_by": by}),
            },
            manifest_sha256=store.claim("poses", poses.id),
        ),
        row.id,
        versions(),
        use,
    )
    if in_force:
        assess(engine, store, rules, session)
    return RegisteredPoses(poses, Path(row.path), in_force)


def _video_of(
    files: list[tables.RecordingFile], file: Path, session: str, recording: str | None
) -> tables.RecordingFile:
    """The file of a session that a pose file belongs to: the only one, or the one whose name begins the pose file's
    name."""
    if not files:
        raise PlatformError(f"session {session} is not registered", "Materialise session_videos for it first")
    names = ", ".join(dict.fromkeys(row.recording.name for row in files))
    if recording is not None:
        files = [row for row in files if row.recording.name == recording]
        if not files:
            raise PlatformError(f"session {session} has no recording {recording!r}", f"Choose among {names}")
    if len(files) == 1:
        return files[0]
    # DeepLabCut names its files after the video and the scorer; if `cam1` and `cam10` both fit, the longer one is
    # meant.
    named = [row for row in files if file.stem.startswith(Path(row.path).stem)]
    longest = max((len(Path(row.path).stem) for row in named), default=0)
    meant = [row for row in named if len(Path(row.path).stem) == longest]
    if len(meant) != 1:
        videos = ", ".join(Path(row.path).name for row in files)
        raise PlatformError(
            f"{file.name} could be the poses of {videos} in session {session}",
            "Let the file's name begin with that of its video, as DeepLabCut does"
            + ("" if recording else f"; or say which recording: {names}"),
        )
    return meant[0]
