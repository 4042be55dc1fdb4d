"""Poses: the tidy table, its scores and the verdict on them. Nothing here runs a network or reads a video."""

#: The one individual of a project that does not distinguish animals.
SINGLE_ANIMAL = "animal0"
