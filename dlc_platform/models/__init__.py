"""Model versions of a project: comparison, promotion, impact. Networks are run in `dlc` alone."""
