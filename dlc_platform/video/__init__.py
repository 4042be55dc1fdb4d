"""Video files: what they hold and whether they are whole. Nothing here knows about sessions or poses."""
