"""Benchmarks: each is runnable by itself and prints one table."""
