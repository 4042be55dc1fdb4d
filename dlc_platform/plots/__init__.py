"""Pictures made from plain tables and frames, small enough for a page's metadata. Nothing is computed here."""
