"""From a raw root to a registered session: its folder, its files, whether they are whole, and its row."""
