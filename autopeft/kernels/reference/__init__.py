"""The plain-torch twin of every kernel: what it computes by definition, and what runs where no kernel does."""
