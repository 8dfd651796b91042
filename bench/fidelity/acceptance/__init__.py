"""How many of its own sparse drafts a model accepts when dense attention verifies them."""
