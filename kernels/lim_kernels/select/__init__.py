"""The token set of LessIsMore: one set per request, shared by all heads (arXiv 2508.07101).

``reference`` defines it in plain torch; ``launch`` makes the same set on a GPU.
"""
