"""A registered version as a service, as one prediction, or as a folder of weights."""
