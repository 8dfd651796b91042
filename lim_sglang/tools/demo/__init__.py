"""`lim-sglang demo`: a conversation served with lim, judged by dense attention."""
