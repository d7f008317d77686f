"""Prompts as people write them: emphasis, chunks, and the names of add-ons in them."""
