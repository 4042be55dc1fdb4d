"""What people are told about a stretch of time, from the catalogue."""
