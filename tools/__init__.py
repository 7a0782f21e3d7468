"""Programs for those who work on fedmvp itself; none of them is installed."""
