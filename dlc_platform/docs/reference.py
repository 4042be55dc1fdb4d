"""The pages under `pages/reference`, made of the code that they describe.

``python -m dlc_platform.docs.reference`` writes them again; a test fails while they are not what it would write. The
sources are the schema of lab.yaml, the commands, the docstrings of `Platform`, and a catalogue as the migrations make
it. What these do not say, the meaning of the columns of views and files, is written here.
"""

import inspect
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import Engine, text

from dlc_platform.cli.usage import described, spelled

PAGES = Path(__file__).parent / "pages" / "reference"
COMMAND = "python -m dlc_platform.docs.reference"
_MADE = f"<!-- Made of the code by `{COMMAND}`. -->\n"

#: The unit that the end of a key's or a column's name says.
_UNITS = {
    "_seconds": "s",
    "_minutes": "min",
    "_hours": "h",
    "_days": "days",
    "_ms": "ms",
    "_px": "px",
    "_gb": "GB",
    "_bytes": "bytes",
    "_fraction": "fraction",
    "_frames": "frames",
}
_SIMPLE = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}

#: The meaning of the columns of views, in whichever view they stand.
VIEW_COLUMNS = {
    "session": "Key of the recording session, such as `sub-001_ses-01`.",
    "recording": "Name of the recording within its session: one camera, one take.",
    "camera": "The camera's name.",
    "position": "Which of the recording's files this is, from 0.",
    "path": "The file, where it lay when it was registered or seen last.",
    "recording_file": "Key of the row of `recording_file`.",
    "video": "Identity of the video: the SHA-256 of the file's bytes.",
    "pose_estimate": "Identity of the poses.",
    "origin": "`computed` by the platform, or `imported`.",
    "scorer": "DeepLabCut's name of what made the poses.",
    "source": "Of imported poses: the file, and who imported it.",
    "run_id": "The run of Dagster.",
    "materialized_at": "When these poses came into force.",
    "estimated_by_run": "The run of Dagster that computed the poses.",
    "estimated_at": "When the poses were computed.",
    "host": "The machine that computed them.",
    "gpu": "Its GPU; `none` on a CPU.",
    "estimation_environment": "Versions of software and hardware of the estimation.",
    "model": "Identity of the model version.",
    "project": "The DeepLabCut project, by its name in lab.yaml.",
    "model_origin": "`trained` here, or `imported`.",
    "model_source": "Of an imported model: where it came from.",
    "weights_sha256": "SHA-256 of the snapshot of the network.",
    "detector_sha256": "The same of the detector of a top-down model.",
    "recipe": "The recipe's name in lab.yaml.",
    "training_run": "The run of Dagster that trained the model.",
    "trained_at": "When it was trained.",
    "training_environment": "Versions of software and hardware of the training.",
    "parameter_set": "Identity of the parameters of the training.",
    "parameters": "The parameters of the training.",
    "dataset": "Identity of the training dataset.",
    "train_images": "Labelled images that the model learned from.",
    "test_images": "Labelled images that it was tested on.",
    "labelled_sessions": "Sessions that these images come from.",
    "inference_parameters": "Region, precision and how animals are tracked; null where all are the usual ones.",
    "frames": "Frames that have poses.",
    "frames_lost": "Frames of which no picture could be decoded.",
    "frames_damaged": "Frames whose picture is damaged.",
    "damage": "What the video lacks, in words; null for a whole one.",
    "backend": "What ran the network; null where that was not written down.",
    "device": "Where it ran, such as `cpu` or `cuda:0`.",
    "export": "Identity of the compiled model that ran, where one did.",
    "seconds": "Time that the estimation took, in seconds.",
    "role": "`taught`, `tested` or `tracked`.",
    "images": "Labelled images.",
    "bodypart": "The body part; `all` for those that every version knows.",
    "rank": "1 is the best.",
    "keypoints": "Labelled keypoints that the error is over.",
    "missed": "Labelled keypoints without a prediction.",
    "rmse_px": "Root of the mean squared distance from the labels, in pixels.",
    "rmse_low_px": "Lower end of its 95 % interval, in pixels.",
    "rmse_high_px": "Upper end of it, in pixels.",
    "rmse_confident_px": "The same error over confident predictions alone, in pixels.",
    "fraction_confident": "Fraction of the predictions that reach `likelihood_cutoff`.",
    "training_known": "False where nobody can say what the model was trained on.",
    "evaluation": "Identity of the evaluation.",
    "production": "True for the version in production.",
    "comparison": "Key of the comparison.",
    "made_at": "When the comparison was made.",
    "kind": "`first` version, by the `rule`, by a `person`, or a `rollback` by one.",
    "promoted_by": "Who promoted it: a person, or the rule.",
    "reason": "Why.",
    "promoted_at": "When.",
    "promotion": "Key of the promotion.",
    "production_model": "Identity of the version that is in production now.",
    "models": "Identities of the versions that made the poses in force.",
    "imported": "True where all of these poses were imported.",
    "files": "How many files the stale poses belong to.",
    "recorded_at": "When the first of these files was recorded, as it says; otherwise when the session was registered.",
}

#: The Parquet files of the store: kind of the product, file, what a row is, and type and meaning of each column.
PARQUET_FILES: tuple[tuple[str, str, str, dict[str, tuple[str, str]]], ...] = (
    (
        "poses",
        "poses.parquet",
        "One row for each frame, individual and body part. Rows are sorted by body part, then individual, then frame; "
        "each body part is a row group of its own, so that reading one reads nothing of the others.",
        {
            "frame": ("int32", "Number of the frame in its file, from 0."),
            "time_s": ("double", "Seconds from the first frame; never decreasing."),
            "individual": (
                "dictionary<values=string, indices=int8, ordered=0>",
                "The animal; `animal0` in a project of one.",
            ),
            "bodypart": (
                "dictionary<values=string, indices=int8, ordered=0>",
                "The body part, by its name in the project.",
            ),
            "x": ("float", "Column in pixels of the full picture, from its left edge; NaN where there is no estimate."),
            "y": ("float", "Row in pixels of the full picture, from its top edge; NaN where there is no estimate."),
            "likelihood": ("float", "How sure the network is, from 0 to 1."),
        },
    ),
    (
        "datasets",
        "labels.parquet",
        "One row for each image and body part of a training dataset. The images lie beside it, in `images`.",
        {
            "image": ("string", "SHA-256 of the project's image file."),
            "folder": ("string", "Its folder below `labeled-data`."),
            "file": ("string", "Its name."),
            "session": ("string", "The session that the image comes from; null where nobody knows."),
            "side": ("string", "`train` or `test`."),
            "bodypart": ("string", "The body part."),
            "x": ("double", "Column in pixels of the full picture; NaN where not labelled."),
            "y": ("double", "Row in pixels of the full picture; NaN where not labelled."),
            "offset_x": ("int64", "Column of the full picture at which the copy in `images` begins."),
            "offset_y": ("int64", "Row of the full picture at which it begins."),
            "pixels_sha256": ("string", "SHA-256 of the pixels of the project's image."),
            "copy_pixels_sha256": ("string", "SHA-256 of the pixels of the copy; another one where it is a region."),
        },
    ),
    (
        "evaluations",
        "predictions.parquet",
        "One row for each image and body part of the dataset that a model was evaluated on: the columns of "
        "`labels.parquet` from `image` to `offset_y`, and the prediction.",
        {
            "predicted_x": ("double", "Predicted column in pixels of the full picture."),
            "predicted_y": ("double", "Predicted row in pixels of the full picture."),
            "likelihood": ("float", "How sure the network is, from 0 to 1."),
            "distance_px": ("double", "Distance between prediction and label, in pixels; NaN where not labelled."),
        },
    ),
)


def pages(engine: Engine) -> dict[str, str]:
    """The generated pages by the name of their file; `engine` is a catalogue that is up to date."""
    return {
        "lab-yaml.md": lab_yaml(),
        "command-line.md": command_line(),
        "python.md": python(),
        "catalogue.md": catalogue(engine),
        "files.md": parquet_files(),
    }


# --- lab.yaml


def lab_yaml() -> str:
    """Every key of lab.yaml with its type, unit, default and meaning, from the schema that editors use too."""
    from dlc_platform.settings.lab import Lab

    schema = Lab.model_json_schema()
    lines = [
        "# The keys of lab.yaml",
        "",
        _MADE,
        "`HOME/lab.yaml` describes the lab. `dlc-platform init` writes one with comments, and `dlc-platform doctor` "
        "says what is wrong with yours. Relative paths begin at HOME. A key that is left out has its default.",
        "",
    ]
    shown: dict[str, str] = {}
    waiting: list[tuple[str, dict[str, Any]]] = [("", schema)]
    while waiting:
        path, section = waiting.pop(0)
        if path:
            lines += [f"## `{path}`", "", _prose(section.get("description", "")), ""]
        rows, inner = [], []
        for key, entry in section["properties"].items():
            full = f"{path}.{key}" if path else key
            for name, ending in _sections(entry):
                if name not in shown:
                    shown[name] = full + ending
                    inner.append((full + ending, schema["$defs"][name]))
            default = _default(key, entry, key in section.get("required", ()))
            kind = _kind(entry, shown) + _unit(key, entry)
            rows.append((f"`{key}`", kind, default, _meaning(entry, schema)))
        lines += [*_table(("key", "type", "default", "meaning"), rows), ""]
        waiting[:0] = inner
    return "\n".join(lines)


def _meaning(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    """The meaning of a key; pydantic leaves it out if its section says exactly the same."""
    section = schema["$defs"].get(entry.get("$ref", "").rsplit("/", 1)[-1], {})
    return _prose(entry.get("description") or section.get("description", ""))


def _anchor(path: str) -> str:
    """The anchor that mkdocs, and the viewers of repositories, give the heading of a section."""
    return re.sub(r"[^a-z0-9_]+", "", path.lower())


def _sections(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The sections that a key holds, and what its path is followed by: a name, or an entry of a list."""
    if "$ref" in entry:
        yield entry["$ref"].rsplit("/", 1)[1], ""
    for part in entry.get("anyOf", ()):
        yield from _sections(part)
    if isinstance(more := entry.get("additionalProperties"), dict):
        yield from ((name, ".NAME") for name, _ in _sections(more))
    if isinstance(items := entry.get("items"), dict):
        yield from ((name, "[]") for name, _ in _sections(items))


def _kind(entry: dict[str, Any], shown: dict[str, str]) -> str:
    if "$ref" in entry:
        path = shown[entry["$ref"].rsplit("/", 1)[1]]
        return f"[keys](#{_anchor(path)})"
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_kind(part, shown) for part in entry["anyOf"]))
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    kind = entry.get("type")
    if kind == "null":
        return "null"
    if kind == "array":
        if "prefixItems" in entry:
            return f"list of {len(entry['prefixItems'])}: {_kind(entry['prefixItems'][0], shown)} each"
        return f"list of {_kind(entry['items'], shown)}"
    if kind == "object":
        return f"names, each with {_kind(entry['additionalProperties'], shown)}"
    if entry.get("format") == "path":
        return "path"
    return _SIMPLE[str(kind)] + _range(entry)


def _range(entry: dict[str, Any]) -> str:
    if "minimum" in entry and "maximum" in entry:
        return f" from {_number(entry['minimum'])} to {_number(entry['maximum'])}"
    ends = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return "".join(f", {words} {_number(entry[end])}" for end, words in ends.items() if end in entry)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _unit(key: str, entry: dict[str, Any]) -> str:
    ending = next((unit for end, unit in _UNITS.items() if f"_{key}".endswith(end)), None)
    if key.startswith("gigabytes"):
        ending = "GB"
    unit = None if any(_sections(entry)) else entry.get("unit", ending)
    return f" ({unit})" if unit else ""


def _default(key: str, entry: dict[str, Any], required: bool) -> str:
    if required:
        return "**required**"
    default = entry.get("default")
    if key == "pattern":
        return "NeuroBlueprint's"
    if isinstance(default, dict):
        given = ", ".join(f"{name}: {_yaml(value)}" for name, value in default.items() if value is not None)
        if set(default) <= {"warn", "fail"}:
            return f"`{{{given}}}`" if given else "none"
        return "as below"  # in the table of its own keys
    return "none" if default in (None, []) else f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- the command line


def command_line() -> str:
    """Every command with its arguments and options, from the program itself."""
    lines = [
        "# Commands",
        "",
        _MADE,
        "`dlc-platform COMMAND --help` says the same in the terminal. HOME is the folder that holds lab.yaml. The exit "
        "code is 0 when all went well, 1 when something did not, and 2 when the command was not understood.",
        "",
    ]
    groups: dict[str, list[str]] = {}
    for path, command, group in commands():
        groups.setdefault(group, []).extend(_command(path, command))
    for group, own in groups.items():
        lines += [f"## {group}", "", *own]
    return "\n".join(lines)


def commands() -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Every command that is no group of others: the words that call it, itself, and under which heading help has it."""
    from dlc_platform.cli.app import GROUPS

    for heading, group in GROUPS.items():
        for path, command in _leaves(typer.main.get_group(group), ()):
            yield path, command, heading


def _leaves(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in group.commands.items():
        if getattr(inner, "hidden", False):
            continue
        if hasattr(inner, "commands"):
            yield from _leaves(inner, (*path, name))
        else:
            yield (*path, name), inner


def _command(path: tuple[str, ...], command: Any) -> list[str]:
    name = " ".join(word for word in path if word != "list" or len(path) == 1)
    context = command.context_class(command, info_name=f"dlc-platform {name}")
    usage = " ".join([f"dlc-platform {name}", *command.collect_usage_pieces(context)])
    lines = [f"### {name}", "", f"    {usage}", "", _prose(inspect.cleandoc(command.help or "")), ""]
    rows = [
        (f"`{spelled(parameter)}`", _prose(described(parameter)))
        for parameter in command.params
        if not getattr(parameter, "hidden", False) and "--help" not in parameter.opts
    ]
    return lines + ([*_table(("", "what it is"), rows), ""] if rows else [])


# --- Python


def python() -> str:
    """The public names of the package with their docstrings."""
    import dlc_platform
    from dlc_platform.platform import Platform

    lines = [
        "# From Python",
        "",
        _MADE,
        "```python",
        "from dlc_platform import Platform",
        "",
        'lab = Platform("HOME")',
        'poses = lab.poses("sub-001_ses-01")',
        "```",
        "",
        "Tables are pandas DataFrames. Reading changes nothing.",
        "",
        "## Platform",
        "",
        *_docstring(Platform),
    ]
    returned: dict[str, type] = {}
    for name, method in public_methods(Platform):
        signature = str(inspect.signature(method)).replace("self, ", "").replace("(self)", "()").replace("'", "")
        signature = re.sub(r"dlc_platform(\.\w+)*\.(?=\w)", "", signature)
        lines += [f"### {name}", "", "```python", f"Platform.{name}{signature}", "```", "", *_docstring(method)]
        kind = inspect.signature(method).return_annotation
        if isinstance(kind, type) and is_dataclass(kind) and kind.__module__.startswith("dlc_platform"):
            returned[kind.__name__] = kind
    for name, kind in sorted(returned.items()):
        lines += [f"## {name}", "", *_docstring(kind)]
        rows = [(f"`{field.name}`", f"`{_annotation(field.type)}`") for field in fields(kind)]  # pyright: ignore[reportArgumentType]
        lines += [*_table(("attribute", "type"), rows), ""]
    for name in sorted(set(dir(dlc_platform)) & {"PlatformError", "PlatformWarning"}):
        lines += [f"## {name}", "", *_docstring(getattr(dlc_platform, name))]
    return "\n".join(lines)


def public_methods(kind: type) -> list[tuple[str, Any]]:
    """Methods and properties that a person may call, in the order of the source."""
    own = {
        name: value.fget if isinstance(value, property) else value
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }
    return list(own.items())


def _annotation(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def _docstring(thing: Any) -> list[str]:
    """A docstring of NumPy's style as Markdown: each of its sections is a word in bold and a list."""
    lines = _prose(inspect.getdoc(thing) or "", join=False).split("\n")
    made: list[str] = []
    section = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch(r"-{3,}", following) and line.strip():
            section = line.strip()
            made += [f"**{section}**", "", *(["```python"] if section == "Examples" else [])]
        elif re.fullmatch(r"-{3,}", line):
            continue
        elif section == "Examples":
            made.append(re.sub(r"^(>>>|\.\.\.) ?", "", line).replace("  # doctest: +SKIP", ""))
        elif section and line and not line.startswith(" "):
            made.append(f"* `{line}`:")
        else:
            made.append(f"  {line.strip()}" if section and line else line)
    if section == "Examples":
        made.append("```")
    return [*made, ""]


# --- the catalogue


def catalogue(engine: Engine) -> str:
    """Views and tables of the catalogue: views as the database describes them, tables as their classes do."""
    from dlc_platform.catalog import SCHEMA, tables

    lines = [
        "# The catalogue's views and tables",
        "",
        _MADE,
        f"The schema `{SCHEMA}` of the lab's Postgres is meant to be read by any tool. Start with the views: they "
        "answer what is asked for years. Rows of products are written once and never changed; the platform "
        "alone writes.",
        "",
        "## Views",
        "",
    ]
    for view, comment, columns in views(engine):
        rows = [(f"`{name}`", kind, VIEW_COLUMNS.get(name, "")) for name, kind in columns]
        lines += [f"### {view}", "", comment, "", *_table(("column", "type", "meaning"), rows), ""]
    lines += ["## Tables", ""]
    classes = {mapper.class_.__table__.name: mapper.class_ for mapper in tables.Base.registry.mappers}
    for name, kind in sorted(classes.items()):
        columns = ", ".join(f"`{column.name}`" for column in kind.__table__.columns)
        lines += [f"### {name}", "", _prose(inspect.getdoc(kind) or ""), "", f"Columns: {columns}.", ""]
    return "\n".join(lines)


def views(engine: Engine) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Each view with its comment, and with name and type of its columns."""
    from dlc_platform.catalog import SCHEMA

    with engine.connect() as connection:
        found = connection.execute(
            text(
                "select c.relname, obj_description(c.oid), a.attname, format_type(a.atttypid, a.atttypmod) "
                "from pg_class c join pg_namespace n on n.oid = c.relnamespace "
                "join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 "
                "where n.nspname = :schema and c.relkind = 'v' order by c.relname, a.attnum"
            ),
            {"schema": SCHEMA},
        ).all()
    by_view: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for view, comment, column, kind in found:
        kind = re.sub(r"character varying(\(\d+\))?", "text", kind)
        kind = kind.replace("timestamp with time zone", "time").replace("double precision", "float")
        by_view.setdefault((view, comment or ""), []).append((column, kind))
    return [(view, comment, columns) for (view, comment), columns in by_view.items()]


# --- files


def parquet_files() -> str:
    """The Parquet files of the store."""
    lines = [
        "# Parquet files of the store",
        "",
        _MADE,
        "The store holds one folder for each product: `store/KIND/IDENTITY`. A folder that is there is complete and "
        "never changes. `manifest.json` in it says what the product is and lists the SHA-256 of its other files. Any "
        "program that reads Parquet reads these tables; `Platform` finds them for you.",
        "",
    ]
    for kind, file, rows, columns in PARQUET_FILES:
        lines += [f"## {file}", "", f"In `store/{kind}/IDENTITY`. {rows}", ""]
        lines += _table(("column", "type", "meaning"), [(f"`{name}`", *said) for name, said in columns.items()])
        lines += [""]
    lines += [
        "Beside `poses.parquet` lies the same in DeepLabCut's own `.h5`, under the name that DeepLabCut gives it. A "
        "product of kind `models` holds `snapshot.pt` and `pytorch_config.yaml`, and `exports` what OpenVINO runs.",
        "",
    ]
    return "\n".join(lines)


def column_types(file: str) -> dict[str, str]:
    """The columns that a Parquet file of this name is said to have, with their types."""
    return {
        name: kind for _, name_of, _, columns in PARQUET_FILES if name_of == file for name, (kind, _) in columns.items()
    }


# --- Markdown


def _prose(said: str, join: bool = True) -> str:
    """Text of a docstring as Markdown: its code in single backticks, and each paragraph on one line where asked for."""
    said = said.replace("``", "`")
    if not join:
        return said
    return "\n\n".join(" ".join(part.split()) for part in said.split("\n\n"))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("\n\n", "<br>").replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *map(line, rows)]


def main() -> None:
    """Write the pages; the catalogue is that of a database made for it and thrown away."""
    from dlc_platform.catalog.database import migrate, open_catalog
    from dlc_platform.postgres import server

    with tempfile.TemporaryDirectory(prefix="dlc-reference-") as folder:
        Path(folder).chmod(0o755)
        home = Path(folder) / "postgres"
        try:
            engine = open_catalog(server.ensure_running(home))
            migrate(engine)
            made = pages(engine)
            engine.dispose()
        finally:
            server.discard(home)
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (PAGES / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
