"""The HTTP APIs as pure functions: requests checked, answers written; nothing is computed here."""
