"""The version of the platform.

The second number is that of the newest migration of the catalogue, so it tells which labs a version can work on; the
third one counts the releases between two migrations. CHANGELOG.md in this folder tells what a person must know about
each.
"""

__version__ = "0.7.0"
