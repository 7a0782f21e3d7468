"""Secure aggregation without I/O: messages in, messages out; no socket, no clock, no thread.

The protocol is the malicious-server variant of Bonawitz et al. 2017 on the complete graph; its specification is
docs/secure-aggregation.md. A caller moves messages between one :class:`~secure_agg.client.ClientSession` at each site
and one :class:`~secure_agg.server.ServerSession`, and keeps what must outlive a restart: which rounds were released.
"""
