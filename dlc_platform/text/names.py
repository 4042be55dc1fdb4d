"""Names that a person writes: an unknown name is refused with the names that come near. Also names of derived files."""

import hashlib
from collections.abc import Collection, Iterable
from difflib import get_close_matches

from dlc_platform.errors import PlatformError

#: Bytes of a file's name, on almost every disk.
_LONGEST = 255
_NEAR = 3
#: So many names are listed; for more, a command lists them.
_LISTED = 8


def require_known(what: str, names: Iterable[str], known: Collection[str], listing: str) -> None:
    """Refuse names that do not exist.

    Parameters
    ----------
    what
        The kind of thing that the names belong to, such as "session".
    listing
        The command that lists all names, such as "`dlc-platform sessions HOME`".

    Raises
    ------
    PlatformError
        When a name is unknown; with the unknown names and those that come near them.
    """
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if not unknown:
        return
    near = [name for one in unknown for name in near_names(one, known)]
    if near:
        remedy = f"Did you mean {' or '.join(dict.fromkeys(near))}? All of them: {listing}"
    elif known:
        few = f"Choose among {', '.join(sorted(known))}"
        remedy = few if len(known) <= _LISTED else f"Choose among those of {listing}"
    else:
        remedy = f"There is none yet: {listing}"
    raise PlatformError(f"there is no {what} {', '.join(map(repr, unknown))}", remedy)


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """The known names that contain the written one or look like it, the nearest first; at most three."""
    folded = {one.casefold(): one for one in sorted(known, reverse=True)}
    written = name.casefold().strip()
    alike = get_close_matches(written, folded, _NEAR, cutoff=0.75)
    within = [one for one in sorted(folded) if written and written in one]
    return [folded[one] for one in dict.fromkeys([*alike, *within])][:_NEAR]


def file_name(stem: str, ending: str) -> str:
    """The name of a file that is derived from another file, whose name may have the greatest length.

    If stem and ending together are too long for a disk, the stem is cut between two characters and ends in a hash of
    itself, so that two different long stems give two names.
    """
    name = stem + ending
    if len(name.encode()) <= _LONGEST:
        return name
    mark = f"~{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
    room = _LONGEST - len((mark + ending).encode())
    return stem.encode()[:room].decode(errors="ignore") + mark + ending
