"""The command line: a module for each group of commands, each a thin door to a layer below; nothing is computed."""
