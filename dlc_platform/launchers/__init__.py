"""The launchers: they turn runs into processes or cluster jobs, and give each its GPUs."""
