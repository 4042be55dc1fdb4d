"""The asset graph; one module for each group of the UI. An asset is thin: inputs, one call, and metadata."""
