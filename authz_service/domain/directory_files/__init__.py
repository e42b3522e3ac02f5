"""Directory files: a whole directory in one JSON or YAML file, imported and exported (DF1)."""
