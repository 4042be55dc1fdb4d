"""Words and layout for people, and the names that they write. Nothing about labs and sessions belongs here."""
