"""Pictures made of plain tables and frames, small enough to lie in a page's metadata. Nothing is computed here."""
