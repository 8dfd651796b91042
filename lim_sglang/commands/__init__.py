"""The commands of `lim-sglang`, one room each; `lim_sglang.cli` is their door."""
