"""Drivers of other systems, each run by the interpreter of a virtual environment that holds that system."""
