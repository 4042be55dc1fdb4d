"""lab.yaml: a module for each subject of its sections, the lab that they make, and its loading."""
