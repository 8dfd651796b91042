"""Small hooks on SGLang, one a file; ``patches/README.md`` is the ledger.

Importing this package changes nothing. Those in ``registry`` are registered by ``lim_sglang.plugin``; the stand-ins of
``lim_cpu_host`` are switched on by its ``activate()`` and only where a process may use no GPU.
"""
