"""Mixed traffic against a server, for minutes or hours: what is lost, stuck, leaked or answered otherwise."""
