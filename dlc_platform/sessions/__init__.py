"""The way from a raw root to a registered session: its folder, its files, their completeness, and its row."""
