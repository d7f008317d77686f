"""What makes drawing fast on a CPU. Everything works without it, and draws the same pictures but for rounding."""
