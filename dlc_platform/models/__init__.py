"""Model versions of a project: comparison, promotion, impact. Only `dlc` runs networks."""
