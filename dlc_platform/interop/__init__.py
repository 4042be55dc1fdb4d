"""Foreign formats: one module for each. Their content becomes the platform's own tables here."""
