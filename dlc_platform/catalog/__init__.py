"""The catalogue: what exists, what made it, and how good it is, as tables in the Postgres schema ``dlc``."""

SCHEMA = "dlc"
