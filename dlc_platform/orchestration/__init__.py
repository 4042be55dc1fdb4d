"""Everything that knows Dagster, except the run launcher. Computations belong in the layers below."""
