"""Products of few rows with a weight in int8: what a draft step reads is mostly weights."""
