"""The commands ``fedmvp-server`` and ``fedmvp-client``: arguments in, answers on stdout, people's text on stderr.

Heavy packages (torch, grpc) are imported inside the command that needs them, so that ``--help`` and a mistyped option
answer at once.
"""
