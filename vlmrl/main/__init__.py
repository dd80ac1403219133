"""One readable program per command. Flags, configs and loggers end here."""
