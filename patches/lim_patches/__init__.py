"""Small hooks on SGLang, one a file; ``patches/README.md`` is the ledger.

Importing this package changes nothing. ``host_patches()`` are registered by ``lim_sglang.plugin``; the stand-ins of
``lim_patches.cpu_host`` are switched on by its ``activate()`` and only on a machine without a GPU.
"""
