"""The web servers: the gate before every page, and Dagster's web server behind it."""
