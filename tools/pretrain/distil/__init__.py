"""Pre-training of ``fedmvp-small``: a vision transformer and a text tower, each distilled from a teacher.

Teachers are used to make weights and never shipped. In the order of use, each a program: ``drawings`` and
``photographs`` gather images, ``targets`` runs the teachers once and keeps what they say, ``vision`` and ``text`` train
the two towers, ``export`` writes the shipped files, ``measure`` reports zero-shot accuracies. No weights ship yet:
docs/adr/0014 says what the one run so far reached.
"""
