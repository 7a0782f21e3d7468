"""The demo: one server and four sites as separate processes on this machine, on real images.

Not part of the installed package. It drives the same programs that a hospital would run, and adds three things that no
production build has: it makes all parties' folders on one machine, its sites write down their own updates, so that the
launcher can check the sums afterwards, and it kills one site in the middle of a round.
"""
