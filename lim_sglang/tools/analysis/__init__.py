"""What sparse attention does to a model, measured with Hugging Face's implementation of it: no server, any device."""
