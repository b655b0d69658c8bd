"""What installs kohort and keeps it running: no part of either program."""
