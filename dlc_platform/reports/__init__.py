"""Reports for people about a stretch of time, from the catalogue."""
