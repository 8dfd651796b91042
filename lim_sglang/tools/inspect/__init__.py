"""`lim-sglang inspect`: an HTML page of what every decode step attended to."""
