"""What browsers reach: the gate before every page, and Dagster's web server behind it."""
