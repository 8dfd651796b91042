"""The commands of `lim-sglang`, one room each; `lim_sglang.tools.cli` is their entry point."""
