"""What the hospital keeps: configuration, folder, plans, ledger; it never talks to the network."""
