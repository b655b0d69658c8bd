"""`kohort-site`, one file a group of commands; it decides nothing, it calls the rooms."""
