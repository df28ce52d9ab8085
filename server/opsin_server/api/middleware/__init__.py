"""What stands around every route: logs, error responses, keys, limits."""
