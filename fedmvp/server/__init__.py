"""The coordinator: gathers a cohort, carries the exchanges of the secure sum, applies the sum, and publishes it.

It holds masked vectors and their sum, and never a site's update; it holds no site's key and decides nothing about
anybody's privacy budget.
"""
