"""Pre-training of the embedded backbone ``fedmvp-tiny`` on public images.

Three steps, each a program: ``python -m tools.pretrain.collect`` gathers the public sources into one corpus folder and
records their hashes (``sources.json`` holds those of the shipped weights), ``python -m tools.pretrain.train`` trains
the CLIP from scratch, ``python -m tools.pretrain.export`` writes the shipped files and measures them. The images never
enter the repository.
"""
