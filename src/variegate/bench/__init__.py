"""What keeps us honest: a world whose truth is known, and its judge."""
