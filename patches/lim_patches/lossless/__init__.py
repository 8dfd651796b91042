"""Hooks on which the lossless mode rests; applied where SGLang makes its worker."""
