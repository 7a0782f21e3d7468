"""From results files to one page, pictures and tables."""
