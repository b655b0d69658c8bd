"""`python -m client` is `kohort-site`."""

from client.cli.main import main

main()
