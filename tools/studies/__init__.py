"""Tools for studies: a public stand-in for data sets of domains, and the choice of settings on it."""
