"""The platform from a notebook: a lab's catalogue and poses as DataFrames.

It only reads; Dagster or `dlc-platform run` start computations.
"""

import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from dlc_platform.catalog.database import open_lab, open_where_there
from dlc_platform.catalog.estimates import estimate_table, lineage_table, pose_table, stale_sessions
from dlc_platform.catalog.evaluations import evaluation_table
from dlc_platform.catalog.models import (
    best_models,
    export_table,
    model_sessions,
    model_table,
    parameter_table,
    require_model,
)
from dlc_platform.catalog.notifications import notification_table
from dlc_platform.catalog.products import holdings
from dlc_platform.catalog.promotions import promotion_table
from dlc_platform.catalog.quarantine import quarantine_table
from dlc_platform.catalog.sessions import detail_table, session_keys, session_table
from dlc_platform.catalog.verdicts import judged_files
from dlc_platform.errors import PlatformError, PlatformWarning, command
from dlc_platform.estimates.other_rules import poses_of_other_rules, unread_rules
from dlc_platform.estimates.quality_gate import held_back, quality_table, release_command, require_good_poses
from dlc_platform.estimates.verdicts import worst_quality
from dlc_platform.identity import short
from dlc_platform.lab.plan import Plan, plan
from dlc_platform.lab.waiting import waiting_table
from dlc_platform.models.impact import Impact, impact_of
from dlc_platform.reports.daily import DailyReport, daily_report, require_reported, yesterday
from dlc_platform.settings.loading import load_lab
from dlc_platform.store import Store
from dlc_platform.text.names import require_known
from dlc_platform.text.words import counted

if TYPE_CHECKING:
    import pandas as pd

    from dlc_platform.models.comparison import ProjectComparison


class Platform:
    """A lab to read from: its sessions, models and poses as DataFrames. Nothing in the lab is changed.

    Parameters
    ----------
    home
        The folder that holds lab.yaml. Its embedded Postgres is started by the first question, if it does not run;
        questions change nothing else.

    Raises
    ------
    PlatformError
        When lab.yaml is not valid. A question raises it too when Postgres cannot be reached, the lab has no catalogue
        yet, or the catalogue has the tables of another version of the platform.

    Examples
    --------
    >>> lab = Platform("my-lab")  # doctest: +SKIP
    >>> poses = lab.poses("sub-001_ses-01", bodyparts=["snout"])  # doctest: +SKIP
    """

    def __init__(self, home: str | Path):
        self.home = Path(home).expanduser().resolve()
        self.settings = load_lab(self.home)
        self._store = Store(self.settings.store)
        self._opened: Engine | None = None

    def __repr__(self) -> str:
        try:
            held = holdings(self._engine)
        except (PlatformError, DBAPIError) as error:
            told = error.problem if isinstance(error, PlatformError) else "its database does not answer"
            return f"<Platform {self.settings.name} in {self.home}: {told}>"
        sessions = f"{counted(held['sessions'], 'session')}, {held['tracked']} of them with poses"
        models = counted(held["models"], "model version")
        return f"<Platform {self.settings.name} in {self.home}: {sessions}; {models}>"

    @property
    def _engine(self) -> Engine:
        """The catalogue; an embedded server that was stopped since the last call (`up` does so) is started again."""
        if self._opened is not None:
            try:
                self._opened.connect().close()
                return self._opened
            except OperationalError:
                self._opened.dispose()
        self._opened = open_lab(self.home)
        return self._opened

    def sessions(self, details: bool = False) -> "pd.DataFrame":
        """One row for each current file of each session, with the model that tracked it or the problem it has.

        Parameters
        ----------
        details
            Add what the lab's own tables say, as text, in columns such as ``subject.sex`` and ``session.weather``.
        """
        sessions = session_table(self._engine)
        if not details:
            return sessions
        said = detail_table(self._engine)
        said = said[said["of"].isin(["subject", "session"])]
        wide = said.assign(column=said["of"] + "." + said["name"]).pivot(
            index="session", columns="column", values="value"
        )
        return sessions.merge(wide, how="left", left_on="session", right_index=True)

    def plan(self) -> Plan:
        """The plan for the files on the disks now: what would be registered and tracked, and why the rest would not.

        Nothing is written, and a lab that was never started stays so: then every session is new.
        """
        engine = open_where_there(self.home)
        try:
            return plan(self.settings, engine)
        finally:
            if engine is not None:
                engine.dispose()

    def details(self) -> "pd.DataFrame":
        """One row for each value that the lab's own tables give a session, its subject or a video, and its source."""
        return detail_table(self._engine)

    def quarantine(self, open_only: bool = True) -> "pd.DataFrame":
        """The entries of the quarantine: session, stage, file, reason, remedy, since; the newest first.

        Parameters
        ----------
        open_only
            Leave out entries that have ended, because the file changed or a person released the session.
        """
        return quarantine_table(self._engine, open_only)

    def waiting(self) -> "pd.DataFrame":
        """Every session that waits or is held up: session, step, file, since, reason, remedy.

        `passing` is true if nobody needs to do anything. Sessions in quarantine are among them.
        """
        return waiting_table(self._engine, self.settings)

    def report(self, day: date | None = None) -> DailyReport:
        """The report of a day in the lab's time zone, by default of the last finished day.

        Raises
        ------
        PlatformError
            When the day has not begun, or is before the lab's first one.
        """
        zone = self.settings.time_zone
        if day is not None:
            require_reported(self._engine, day, zone)
        return daily_report(self._engine, day or yesterday(zone), zone, self.settings.damaged_videos)

    def notifications(self) -> "pd.DataFrame":
        """The notifications to each channel, the newest first; `state` is waiting, sent or given up."""
        return notification_table(self._engine)

    def models(self) -> "pd.DataFrame":
        """One row for each training and each imported version, oldest first.

        `test_rmse_px` is over `test_images` images that it was not trained on; `tested_on` says this in words, and adds
        if it may have been trained on them.
        """
        return model_table(self._engine)

    def evaluations(self) -> "pd.DataFrame":
        """One row for each evaluation, side and body part; distances in pixels.

        Side ``test`` is over the images that the version was not trained on, side ``train`` over those that it was
        trained on.
        """
        return evaluation_table(self._engine)

    def estimates(self) -> "pd.DataFrame":
        """One row for each recording that has poses, with the estimate in force and its quality."""
        return pose_table(self._engine)

    def quality(self, session: str | None = None) -> "pd.DataFrame":
        """The scores of the poses in force as they were last judged, of one session or of all.

        Raises
        ------
        PlatformError
            When there is no such session.

        Returns
        -------
        DataFrame
            One row for each recording, individual and body part or limb, and one over all of them (`all`), with the
            scores that `pose.scores` explains, `verdict` (pass, warn or fail) and `findings`: the scores beyond their
            limits in words, each with its value, its limit and the source of the limit, separated by semicolons.
        """
        if session is not None:
            self.require_sessions([session])
        return quality_table(self._engine, session)

    def worst_quality(self, most: int = 100) -> "tuple[pd.DataFrame, dict[str, int]]":
        """The newest recordings whose poses do not pass, in the columns of `quality`, and the counts of all verdicts.

        Each is one row over all of its body parts.
        """
        import pandas as pd

        rows, verdicts = worst_quality(self._engine, most)
        return pd.DataFrame(rows, columns=quality_table(self._engine, "").columns), verdicts

    def not_judged_by_floors(self, session: str | None = None) -> list[str]:
        """The files of a session, or of all, whose poses in force have not been judged since lab.yaml has floors."""
        return [path for path, judged in judged_files(self._engine, session).items() if not judged]

    def require_good_poses(self, session: str | Sequence[str]) -> None:
        """Refuse a session, or the first of several, with poses that failed and were not released, or were not judged.

        Raises
        ------
        PlatformError
            When the session is in quarantine, with the reason and the remedy; or when it has no poses.
        """
        sessions = [session] if isinstance(session, str) else list(session)
        if not sessions:
            raise PlatformError("no session was named", "Name at least one")
        self.require_sessions(sessions)
        for key in sessions:
            require_good_poses(self._engine, key)

    def promotions(self) -> "pd.DataFrame":
        """Every promotion, oldest first: who promoted which version, when, why, and on which evaluation and error.


        `warning` is what the version's own test images said against it, such as that it is hopeless.
        """
        return promotion_table(self._engine)

    def exports(self) -> "pd.DataFrame":
        """One row for each export of a model version: its distance from DeepLabCut in pixels, and its speed."""
        return export_table(self._engine)

    def parameters(self) -> "pd.DataFrame":
        """One row for each version of each recipe; `also_called` names the other recipes with the very same
        parameters."""
        return parameter_table(self._engine)

    def model_sessions(self, model: str) -> "pd.DataFrame":
        """The sessions that a model version learned from, was tested on or tracked.

        Raises
        ------
        PlatformError
            When there is no such version.
        """
        return model_sessions(self._engine, self.model_id(model))

    def stale_sessions(self, imported: bool = True) -> "pd.DataFrame":
        """The sessions with poses in force that their production model did not make, the newest recording first.

        Parameters
        ----------
        imported
            True to include sessions all of whose poses were imported.
        """
        self._warn_of_rules()
        return stale_sessions(self._engine, imported)

    def poses_of_other_rules(self) -> "pd.DataFrame":
        """The poses in force that were made with another region or precision than lab.yaml names for them now."""
        return poses_of_other_rules(self._engine, Store(self.settings.store), self.settings.tracking)

    def impact(self, model: str) -> Impact:
        """The poses that become stale when a model version is promoted, and the time to estimate them again.

        Raises
        ------
        PlatformError
            When there is no such version.
        """
        self._warn_of_rules()
        return impact_of(self._engine, self.model_id(model))

    def _warn_of_rules(self) -> None:
        if (said := unread_rules(self._engine, self.settings.tracking)) is not None:
            warnings.warn(said, PlatformWarning, stacklevel=3)

    def best_models(self) -> "pd.DataFrame":
        """The versions of each project's newest comparison by body part, the best first; errors in pixels."""
        return best_models(self._engine)

    def compare(self, project: str) -> "ProjectComparison":
        """The versions of a project side by side on the same test images, from evaluations that exist already.

        Its `versions`, `bodyparts`, `sessions` and `left_out` are DataFrames, with errors in pixels; `warnings` are
        sentences that a reader must know.

        Raises
        ------
        PlatformError
            When there is no such project, or nothing to compare.
        """
        from dlc_platform.models.comparison import compare_project

        self.require_project(project)
        return compare_project(self._engine, self._store, project, self.settings.likelihood_cutoff)

    def model_id(self, start: str) -> str:
        """The identity of the model version whose identity begins with `start`, as tables show it.

        Raises
        ------
        PlatformError
            When no version begins with it, or several do.
        """
        return require_model(self._engine, start).id

    def project_of(self, model: str) -> str:
        """The project of a model version, which is named as in `model_id`."""
        return require_model(self._engine, model).project

    def earlier_model(self, project: str) -> str:
        """The version that a rollback of a project goes to: the one before the one in production.

        Versions that were rolled back are passed over, so a second rollback goes one step further.

        Raises
        ------
        PlatformError
            When no other version was in production before, or there is no such project.
        """
        from dlc_platform.models.promotion import version_before

        self.require_project(project)
        return version_before(self._engine, project)

    def poses(
        self,
        session: str | Sequence[str],
        bodyparts: Sequence[str] | None = None,
        model: str | None = None,
        include_quarantined: bool = False,
    ) -> "pd.DataFrame":
        """The poses of one session, or of several.

        Sessions in quarantine for the quality of these poses cause a warning, or an error if lab.yaml says that bad
        poses block exports.

        Parameters
        ----------
        model
            Take the poses that this version made, in force or not (its identity, or the beginning of it that tables
            show).
        include_quarantined
            Take poses that are in quarantine for their quality without a warning.

        Returns
        -------
        DataFrame
            Columns session, recording, frame (from 0), time_s (seconds from the recording's first frame), individual,
            bodypart, x, y (pixels, origin at the top left of the full frame; NaN where there is no estimate) and
            likelihood (0 to 1). If a recording has several files, frames and times go on from one to the next; a file
            without poses keeps its place, and causes a warning. So does a camera whose poses are by several models, or
            in several precisions.

        Raises
        ------
        PlatformError
            When a session has no poses, the number of frames before its poses is not known, a body part is unknown, or
            poses are in quarantine and lab.yaml blocks exports.
        """

        from dlc_platform.pose.table import POSE_TABLE, read_parquets

        files = _in_order(self._files_of(session, model))
        estimates = files[files["pose_estimate"].notna()].reset_index(drop=True)
        for warning in (*_gaps(files), *(_mixtures(estimates) if model is None else ())):
            warnings.warn(warning, stacklevel=2)
        if not include_quarantined and (held := held_back(self._engine, list(estimates["pose_estimate"]))):
            problem = "in quarantine: " + "; ".join(f"{key}, {reason}" for key, reason in held.items())
            remedy = f"Release them with {release_command('SESSION')}, or ask for `include_quarantined=True`"
            if "exports" in self.settings.pose_quality.blocks:
                raise PlatformError(problem, remedy)
            told = f"{problem}. {remedy} to read them without this warning."
            warnings.warn(told, PlatformWarning, stacklevel=2)
        paths = [self._store.path("poses", identity) / POSE_TABLE for identity in estimates["pose_estimate"]]
        table = read_parquets(paths, bodyparts)
        part = table.pop("part").to_numpy()
        if (estimates["position"] > 0).any():
            # If a recording goes on in another file, so do its frames and times.
            for name, first in (("frame", estimates["first_frame"]), ("time_s", estimates["first_s"])):
                table[name] += first.to_numpy()[part].astype(table[name].dtype)
        for place, name in enumerate(("session", "recording")):
            table.insert(place, name, estimates[name].to_numpy(object)[part])
        for name in ("individual", "bodypart"):
            # From categories pandas makes groups that do not exist, such as a body part that only another animal has.
            table[name] = table[name].astype(object)
        return table

    def lineage(self, session: str) -> "pd.DataFrame":
        """The model version, labels, parameters, software versions and run that made the poses of a session, a row
        each.

        Raises
        ------
        PlatformError
            When the session has no poses.
        """
        self._files_of(session, None)
        return lineage_table(self._engine, session)

    def _files_of(self, session: str | Sequence[str], model: str | None) -> "pd.DataFrame":
        """The files of sessions that have poses, in the columns of `catalog.estimates.estimate_table`."""
        wanted = [session] if isinstance(session, str) else list(session)
        self.require_sessions(wanted)
        files = estimate_table(self._engine, wanted, None if model is None else self.model_id(model))
        without = sorted(set(wanted) - set(files.loc[files["pose_estimate"].notna(), "session"]))
        if without or not wanted:
            raise PlatformError(
                f"session {', '.join(map(repr, without))} has no poses" + (f" by the model {model}" if model else ""),
                "Materialise pose_estimates for it",
            )
        return files

    def require_sessions(self, sessions: Sequence[str]) -> None:
        """Refuse sessions that were never registered.

        Raises
        ------
        PlatformError
            When a session is not registered; with the names that come near.
        """
        for one in sessions:
            if not isinstance(one, str):
                raise PlatformError(f"{one!r} is not the key of a session", "Ask for one session, by its key as a text")
        known = session_keys(self._engine)
        require_known("registered session", sessions, known, command("sessions", self.home))

    def require_project(self, project: str) -> None:
        """Refuse a project that lab.yaml does not name.

        Raises
        ------
        PlatformError
            When lab.yaml does not name it; with the projects of lab.yaml.
        """
        require_known("project", [project], self.settings.projects, f"`projects` in {self.home / 'lab.yaml'}")


def _in_order(files: "pd.DataFrame") -> "pd.DataFrame":
    """Files with their first frame and their start in the recording: `first_frame` and `first_s`.

    Raises
    ------
    PlatformError
        When a file with poses follows one that cannot be read.
    """
    recordings = files.groupby(["session", "recording"], sort=False)
    unknown = files["frames"].isna()
    after_unknown = unknown.groupby([files["session"], files["recording"]]).cumsum() > unknown
    for file in files[after_unknown & files["pose_estimate"].notna()].itertuples():
        raise PlatformError(
            f"nobody knows at which frame of its recording {file.path} of session {file.session} begins, because a "
            "file before it cannot be read",
            "Replace that file by one that can be read; `dlc-platform sessions HOME` names it",
        )
    return files.assign(
        first_frame=(recordings["frames"].cumsum() - files["frames"]).fillna(0),
        first_s=(recordings["duration_s"].cumsum() - files["duration_s"]).fillna(0),
    )


def _gaps(files: "pd.DataFrame") -> Iterator[str]:
    """A sentence for each file without poses in a recording that has some."""
    has_poses = files["pose_estimate"].notna()
    of_tracked = has_poses.groupby([files["session"], files["recording"]]).transform("any")
    for file in files[of_tracked & ~has_poses].itertuples():
        yield (
            f"{file.path}, a file of the recording {file.recording} of session {file.session}, has no poses: its "
            "frames are missing from the table, and those of the files after it keep their numbers"
        )


def _mixtures(estimates: "pd.DataFrame") -> Iterator[str]:
    """A sentence for each camera whose poses are not all by one model in one precision."""
    for camera, own in estimates.groupby("camera", sort=False):
        models = own.assign(model=own["model"].fillna("imported")).groupby("model", sort=False)["session"].nunique()
        if len(models) > 1:
            each = ", ".join(
                f"{short(str(model))} ({counted(sessions, 'session')})" for model, sessions in models.items()
            )
            yield (
                f"the poses of the camera {camera} are by several models: {each}. `estimates()` says which model made "
                "which, and `model=` takes those of one"
            )
        elif own["precision"].nunique() > 1:
            yield f"some poses of the camera {camera} were estimated in half precision, which `lineage()` names"
