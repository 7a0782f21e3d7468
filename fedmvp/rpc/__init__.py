"""The wire: generated messages, their parsing into validated values, chunked vectors, channels and identities."""
