"""What one site does in a round, and what everyone does with the published sum."""
