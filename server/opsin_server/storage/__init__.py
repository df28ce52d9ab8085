"""State that lasts: a database and files by their content."""
