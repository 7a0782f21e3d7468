"""Pre-training of ``fedmvp-unseen`` and ``fedmvp-small``: vision and text towers, each distilled from a teacher.

Teachers are used to make weights and never shipped. In the order of use, each a program: ``drawings`` and
``photographs`` gather images, ``scenes`` cuts views of them; ``targets``, ``scenes`` and ``guides`` run the teachers
once and keep what they say; ``vision`` and ``text`` train the two towers, ``choices`` tells how well on what was kept
back, ``export`` writes the shipped files, ``measure`` reports zero-shot accuracies. docs/adr/0014 says how well.
"""
