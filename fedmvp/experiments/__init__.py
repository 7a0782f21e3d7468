"""Studies: a sweep of methods, privacy modes and seeds over the real client, server and ledger, and what came of it."""
