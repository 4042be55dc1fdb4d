"""Poses: the tidy table, its summary and its pictures. Nothing here runs a network or reads a video."""
