"""Everything that uses Dagster, except the run launcher. Computations belong in the layers below."""
