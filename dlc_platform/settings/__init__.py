"""lab.yaml: a module for each group of its sections, the model of the whole file, and its loading."""
