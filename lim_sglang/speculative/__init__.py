"""The lossless mode: lim drafts tokens, dense attention verifies them, and the output is dense attention's."""
