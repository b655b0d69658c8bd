"""`python -m server` is `kohort-server`."""

from server.cli.main import main

main()
