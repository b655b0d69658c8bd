"""The one way in from the network: enrolled certificates, nine calls, bounded in every way."""
