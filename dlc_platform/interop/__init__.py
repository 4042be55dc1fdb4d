"""Foreign formats: one module for each. What comes in becomes the platform's own tables at this door."""
