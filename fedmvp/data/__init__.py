"""Images of one site: which files, which labels, and their pixels."""
