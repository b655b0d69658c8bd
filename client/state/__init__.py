"""What the hospital keeps: configuration, keys, plans, ledger, groups; it uses no network."""
