"""LessIsMore sparse decode attention (arXiv 2508.07101) as an SGLang attention backend named ``lim``."""

__version__ = "0.1.0"
