"""`lim-sglang calibrate`: select layers from a model's own attention on text."""
