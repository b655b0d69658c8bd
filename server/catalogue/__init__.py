"""The public catalogue of releases: a signed list, its withdrawals, and a static site around it.

It never changes a release, and never opens what is only proposed."""
