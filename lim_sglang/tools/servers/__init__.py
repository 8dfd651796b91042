"""SGLang servers as child processes of this one, and the model they serve where none is named."""
