"""Declarative mappings: a YAML file that says which column of a table becomes which field of an
annotation."""
