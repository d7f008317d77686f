"""What makes drawing fast on a CPU, and on a GPU. Everything works without it, and draws the same but for rounding."""
