"""What concerns a whole lab: to make one, plan, examine and keep it, to back it up, and what waits in it."""
