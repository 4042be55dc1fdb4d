"""Video files: their content and their damage. Nothing here knows about sessions or poses."""
