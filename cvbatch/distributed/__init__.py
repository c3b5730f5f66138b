"""Ray sessions, resources of nodes, preflight checks and parallel map, for all commands."""
