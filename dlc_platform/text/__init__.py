"""How things are said to people, and the names that they write. Nothing of labs and sessions belongs here."""
