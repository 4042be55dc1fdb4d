"""Identities: what makes two things the same thing.

Products are keyed by content, never by a path or a name. All hashes of the platform are computed here; the module that
makes a kind of product decides what its identity covers.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dlc_platform.files.plain import open_plain

_BLOCK_BYTES = 4 << 20
_IDENTITY = re.compile("[0-9a-f]{64}")


def is_identity(text: str) -> bool:
    """True for results of `sha256_file` and the others: 64 hexadecimal digits, which are harmless as part of a path."""
    return _IDENTITY.fullmatch(text) is not None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises
    ------
    PlatformError
        When it is not a plain file.
    """
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Mapping[str, Any] | Iterable[Any]) -> str:
    """The one JSON text of a value: sorted keys, no white space, shortest floats; NaN and infinities are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: Mapping[str, Any] | Iterable[Any]) -> str:
    """SHA-256 of a value's canonical JSON as 64 hexadecimal digits."""
    return sha256_bytes(canonical_json(value).encode())


def short(identity: str) -> str:
    """The first 12 digits of an identity: enough for a person, never used as a key."""
    return identity[:12]
