"""Careful reading of files that other people made. Their content has its meaning elsewhere."""
