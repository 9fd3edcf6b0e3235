"""What can run on this machine: small graphs that are tried, and what is missing where one fails."""
