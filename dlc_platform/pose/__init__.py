"""Poses: the tidy table, its summary and its pictures. Nothing here runs a network or reads a video."""

#: The one individual of a project that does not tell animals apart.
SINGLE_ANIMAL = "animal0"
