"""Work on a whole lab: making it, planning, examining and keeping it, backing it up, and listing what waits in it."""
