"""The one way in from the network: enrolled certificates, eight calls, bounded in every way."""
