"""What sparsity costs a model's predictions, against dense attention and its rivals."""
